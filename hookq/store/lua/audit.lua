#!lua flags=no-writes
-- audit: all numbers of the ledger in one step, so that they belong together.
-- Returns accepted, done, discarded, retry, dead, then 7 for each source: name, ready, leased, retry, dead, and when its
-- oldest ready job became so and its oldest dead letter died, in milliseconds (0 when there is none).
local ledger = redis.call('HMGET', P .. 'ledger', 'accepted', 'done', 'discarded')
local result = {}
for i = 1, 3 do result[i] = tonumber(ledger[i] or 0) or 0 end
result[4] = redis.call('ZCARD', P .. 'retry')
result[5] = redis.call('ZCARD', P .. 'dead')
for _, source in ipairs(redis.call('SMEMBERS', P .. 'sources')) do
  local entries, leased, taken, oldest = redis.call('XLEN', ready(source)), 0, '0-0', 0
  local groups = redis.pcall('XINFO', 'GROUPS', ready(source))
  if not groups.err and groups[1] then
    for i = 1, #groups[1], 2 do
      if groups[1][i] == 'pending' then leased = groups[1][i + 1] end
      if groups[1][i] == 'last-delivered-id' then taken = groups[1][i + 1] end
    end
  end
  if entries > leased then
    local first = redis.call('XRANGE', ready(source), '(' .. taken, '+', 'COUNT', 1)[1]
    oldest = first and tonumber(string.match(first[1], '^%d+')) or 0
  end
  local dead = redis.call('ZRANGE', P .. 'dead:' .. source, 0, 0, 'WITHSCORES')[2]
  local retry = tonumber(redis.call('HGET', P .. 'retries', source) or 0)
  local died = dead and math.floor(1000 * tonumber(dead)) or 0
  for _, value in ipairs({source, entries - leased, leased, retry, redis.call('ZCARD', P .. 'dead:' .. source), oldest, died}) do
    result[#result + 1] = value
  end
end
return result
