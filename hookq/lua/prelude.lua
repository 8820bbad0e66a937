-- What the scripts share. KEYS[1] is the prefix '{hookq}:' of every key: its hash tag keeps a script in one slot.
local P = KEYS[1]
local FIELDS = {'v', 'id', 'delivery_id', 'event_type', 'received_at', 'attempt', 'deaths', 'suspect', 'head', 'body'}
local ATTEMPT, DEATHS, SUSPECT = 6, 7, 8

-- Redis' clock decides when a job is due and when it died; hosts may disagree about the time, scripts do not.
local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) + math.floor(t[2] / 1000) / 1000
end

local counts = {}
local function count(field, by)
  counts[field] = (counts[field] or 0) + (by or 1)
end
local function flush_counts()
  for field, by in pairs(counts) do redis.call('HINCRBY', P .. 'metrics', field, by) end
end

local function ready(source) return P .. 'ready:' .. source end

-- The ten values of an entry, in the order of FIELDS, or nil when the entry is not there.
local function entry_values(source, entry)
  local found = redis.call('XRANGE', ready(source), entry, entry)[1]
  if not found then return nil end
  local values = {}
  for i = 2, #found[2], 2 do values[i / 2] = found[2][i] end
  return values
end

local function enqueue(source, values)
  local args = {}
  for i = 1, #FIELDS do
    args[2 * i - 1] = FIELDS[i]
    args[2 * i] = values[i]
  end
  return redis.call('XADD', ready(source), '*', unpack(args))
end

-- Keep a job outside the streams (retry, dead, discarded): its fields, its source, and what is known of the failure.
local function park(source, values, error)
  local args = {'source', source, 'error', error}
  for i = 1, #FIELDS do
    args[2 * i + 3] = FIELDS[i]
    args[2 * i + 4] = values[i]
  end
  redis.call('HSET', P .. 'job:' .. values[2], unpack(args))
end

local function parked_values(id)
  local values = redis.call('HMGET', P .. 'job:' .. id, unpack(FIELDS))
  if not values[1] then return nil end
  return redis.call('HGET', P .. 'job:' .. id, 'source'), values
end

-- Bounded by count, not by time: a story is kept for about as long as anybody asks for it, at about 300 bytes each.
local function remember(event, source, id, facts)
  redis.call('XADD', P .. 'history', 'MAXLEN', '~', '10000', '*', 'event', event, 'source', source, 'id', id, 'facts', facts)
end
