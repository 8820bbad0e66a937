-- gone: which of the workers without a connection have been so in two looks, a second apart, whoever looked.
-- ARGV: seconds that Redis has been up, then the workers that are missing now. Returns those that are gone.
-- Noted in Redis, so that a look is not lost with the worker that made it: where workers die one after the other, none
-- might live long enough for two.
-- A clock that was set back makes `up` negative, and a note one of the future: neither may keep a job waiting for the hour.
local up, at = tonumber(ARGV[1]), now()
if up < 0 then up = math.huge end
local missing, gone = {}, {}
for i = 2, #ARGV do missing[ARGV[i]] = true end
for _, name in ipairs(redis.call('HKEYS', P .. 'missing')) do
  if not missing[name] then redis.call('HDEL', P .. 'missing', name) end
end
for name, _ in pairs(missing) do
  local since = tonumber(redis.call('HGET', P .. 'missing', name) or nil)
  -- A note from before Redis started, or from its first second, says nothing: nobody had the time to come back.
  if not since or since < at - up + 1 or since > at then
    redis.call('HSET', P .. 'missing', name, at)
  elseif at - since >= 1 and up > 2 then
    gone[#gone + 1] = name
  end
end
return gone
