#!lua flags=allow-oom
-- gone: which of the workers without a connection have been so in two looks, a second apart, whoever looked.
-- ARGV: this server's run id, its grace in seconds, then the workers that are missing now. Returns those that are gone.
-- Noted in Redis, so that a look is not lost with the worker that made it: where workers die one after the other, none
-- might live long enough for two.
-- A server that was just started, or was a replica until now, has seen nobody yet: what was noted at another is forgotten,
-- and what is noted in its grace does not count. A clock that was set back must not keep a job waiting for the hour.
local run, grace, at = ARGV[1], tonumber(ARGV[2]), now()
local known, begun = unpack(redis.call('HMGET', P .. 'primary', 'run', 'since'))
begun = tonumber(begun or nil)
if known ~= run or begun > at then
  redis.call('HSET', P .. 'primary', 'run', run, 'since', at)
  redis.call('DEL', P .. 'missing')
  begun = at
end
local missing, gone = {}, {}
for i = 3, #ARGV do missing[ARGV[i]] = true end
for _, name in ipairs(redis.call('HKEYS', P .. 'missing')) do
  if not missing[name] then redis.call('HDEL', P .. 'missing', name) end
end
for name, _ in pairs(missing) do
  local since = tonumber(redis.call('HGET', P .. 'missing', name) or nil)
  if not since or since < begun + grace or since > at then
    redis.call('HSET', P .. 'missing', name, at)
  elseif at - since >= 1 then
    gone[#gone + 1] = name
  end
end
return gone
