#!lua flags=no-writes
-- select: which dead letters match. In pieces, so that nobody waits long for a search through many.
-- ARGV: the key of the set (dead, dead:<source>, cause:<cause>), '1' for the newest first, died at least and at most then, how
-- many to pass over, how many to look at, then what must match, '' for anything: event type (whole), error, text (found
-- anywhere in id, delivery id, event type or error; both whatever the case); then ids, if only those are meant.
-- Returns how many were looked at, then for each match its id and its rank in the whole dead set.
local set, low, high = ARGV[1], ARGV[3], ARGV[4]
local kind, error, text = ARGV[7], string.lower(ARGV[8]), string.lower(ARGV[9])
local function has(field, wanted) return string.find(string.lower(field or ''), wanted, 1, true) end

local found = {}
if #ARGV > 9 then
  for i = 10 + ARGV[5], math.min(#ARGV, 9 + ARGV[5] + ARGV[6]) do found[#found + 1] = ARGV[i] end
elseif ARGV[2] == '1' then
  found = redis.call('ZRANGE', set, high, low, 'BYSCORE', 'REV', 'LIMIT', ARGV[5], ARGV[6])
else
  found = redis.call('ZRANGE', set, low, high, 'BYSCORE', 'LIMIT', ARGV[5], ARGV[6])
end
local result = {#found}
for _, id in ipairs(found) do
  local match = true
  if #ARGV > 9 then
    local at = redis.call('ZSCORE', set, id)
    match = at and tonumber(at) >= tonumber(low) and tonumber(at) <= tonumber(high)
  end
  if match and (kind ~= '' or error ~= '' or text ~= '') then
    local job = redis.call('HMGET', P .. 'job:' .. id, 'event_type', 'delivery_id', 'reason', 'error')
    local told, facts = pcall(cjson.decode, job[4] or '{}')
    local why = (error ~= '' or text ~= '') and (job[3] or '') .. ': ' .. (told and facts.error or '') or ''
    match = (kind == '' or job[1] == kind) and has(why, error)
      and (text == '' or has(id, text) or has(job[1], text) or has(job[2], text) or has(why, text))
  end
  local rank = match and redis.call('ZRANK', P .. 'dead', id)
  if rank then
    result[#result + 1] = id
    result[#result + 1] = rank
  end
end
return result
