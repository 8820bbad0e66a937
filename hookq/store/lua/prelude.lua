-- What the scripts share. KEYS[1] is the prefix '{hookq}:' of every key: its hash tag keeps a script in one slot.
-- Above it scripts.py writes the table of a job's fields: FIELDS are their names, ID, BODY … their places among the values
-- of a job, FORMAT the value of V that this version knows.
local P = KEYS[1]
-- A job of another format was made by a newer version, and is left where it is for that one: to move it would lose the
-- fields that we do not know.
local function is_known(values) return values[V] == FORMAT end

-- Redis' clock decides when a job is due and when it died; hosts may disagree about the time, scripts do not.
local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) + math.floor(t[2] / 1000) / 1000
end

-- Counters are for ever; of four of them each minute is also kept by itself, for two hours: the page's last 60 minutes.
-- Of three it is kept when they were raised last.
local BY_MINUTE = {accepted = true, done = true, dead = true, rejected = true}
local LAST = {accepted = true, done = true, secret = true}
local counts = {}
local function count(field, by)
  counts[field] = (counts[field] or 0) + (by or 1)
end
local function observe(name, source, bucket, micros)
  count('h:' .. name .. ':' .. source .. ':' .. bucket)
  count('hs:' .. name .. ':' .. source, tonumber(micros))
end
local function flush_counts()
  local minute
  for field, by in pairs(counts) do
    local name = string.match(field, '^%a+')
    redis.call('HINCRBY', P .. 'metrics', field, by)
    if LAST[name] then redis.call('HSET', P .. 'last', field, now()) end
    if BY_MINUTE[name] then
      minute = minute or P .. 'minute:' .. math.floor(now() / 60)
      redis.call('HINCRBY', minute, field, by)
    end
  end
  if minute then redis.call('EXPIRE', minute, 7200) end
end

local function ready(source) return P .. 'ready:' .. source end

-- The values of an entry, in the order of FIELDS, or nil when the entry is not there.
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
    args[2 * i] = values[i] or ''
  end
  return redis.call('XADD', ready(source), '*', unpack(args))
end

-- Keep a job outside the streams (retry, dead, discarded): its fields, its source, and what is known of the failure.
local function park(source, values, error)
  local args = {'source', source, 'error', error}
  for i = 1, #FIELDS do
    args[2 * i + 3] = FIELDS[i]
    args[2 * i + 4] = values[i] or ''
  end
  redis.call('HSET', P .. 'job:' .. values[ID], unpack(args))
end

local function parked_values(id)
  local values = redis.call('HMGET', P .. 'job:' .. id, unpack(FIELDS))
  if not is_known(values) then return nil end
  return redis.call('HGET', P .. 'job:' .. id, 'source'), values
end

-- A dead letter stands in three sets, so that each kind of list can be counted and paged without reading jobs:
-- all, those of its source, those of its cause. A cause is forgotten with its last dead letter.
local function cause_id(source, text) return string.sub(redis.sha1hex(source .. '\n' .. (text or '')), 1, 8) end

local function dead_sets(source, cause)
  return {P .. 'dead', P .. 'dead:' .. source, P .. 'cause:' .. cause}
end

local function enter_dead(id, at)
  local source, text = unpack(redis.call('HMGET', P .. 'job:' .. id, 'source', 'cause'))
  local cause = cause_id(source, text)
  redis.call('HSET', P .. 'causes', cause, source .. '\n' .. (text or ''))
  for _, set in ipairs(dead_sets(source, cause)) do redis.call('ZADD', set, at, id) end
end

-- Returns source, time of death; nil when it is no dead letter (any more).
local function leave_dead(id)
  local died_at = redis.call('ZSCORE', P .. 'dead', id)
  if not died_at then return nil end
  local source, text = unpack(redis.call('HMGET', P .. 'job:' .. id, 'source', 'cause'))
  if not source then return nil end
  local cause = cause_id(source, text)
  for _, set in ipairs(dead_sets(source, cause)) do redis.call('ZREM', set, id) end
  if redis.call('EXISTS', P .. 'cause:' .. cause) == 0 then redis.call('HDEL', P .. 'causes', cause) end
  return source, died_at
end

-- Bounded by count, not by time: a story is kept for about as long as anybody asks for it, at about 300 bytes each.
local function remember(event, source, id, facts)
  redis.call('XADD', P .. 'history', 'MAXLEN', '~', '10000', '*', 'event', event, 'source', source, 'id', id, 'facts', facts)
end

local function bury(source, values, facts, reason, cause, trace)
  local id = values[ID]
  park(source, values, facts)
  redis.call('HSET', P .. 'job:' .. id, 'reason', reason, 'cause', cause, 'trace', trace)
  enter_dead(id, now())
  count('dead:' .. source .. ':' .. reason)
  remember('job.bury', source, id, facts)
end

-- What an operator did, one entry for each chunk of an act; readers add up those of one act.
-- `who` is JSON of by (page or command), who, act (its id) and what (the selection in words).
local function record_act(name, who, moved)
  if moved > 0 then redis.call('XADD', P .. 'acts', 'MAXLEN', '~', '1000', '*', 'name', name, 'who', who, 'count', moved) end
end
