-- audit: all numbers of the ledger in one step, so that they belong together.
-- Returns accepted, done, discarded, retry, dead, then 3 for each source: name, ready, leased.
local ledger = redis.call('HMGET', P .. 'ledger', 'accepted', 'done', 'discarded')
local result = {}
for i = 1, 3 do result[i] = tonumber(ledger[i] or 0) or 0 end
result[4] = redis.call('ZCARD', P .. 'retry')
result[5] = redis.call('ZCARD', P .. 'dead')
for _, source in ipairs(redis.call('SMEMBERS', P .. 'sources')) do
  local entries = redis.call('XLEN', ready(source))
  local pending = redis.pcall('XPENDING', ready(source), 'workers')
  local leased = pending.err and 0 or pending[1]
  for _, value in ipairs({source, entries - leased, leased}) do result[#result + 1] = value end
end
return result
