-- restore: the dead letters of a discarded batch are dead letters again, with the time of their death.
-- ARGV: who does it, the batch, how many at most. Returns the ids restored; call again until none are.
local batch = P .. 'batch:' .. ARGV[2]
local moved = {}
local found = redis.call('ZRANGE', batch, 0, tonumber(ARGV[3]) - 1, 'WITHSCORES')
for i = 1, #found, 2 do
  local id, job = found[i], P .. 'job:' .. found[i]
  redis.call('ZREM', batch, id)
  if redis.call('PERSIST', job) == 1 then
    redis.call('ZADD', P .. 'dead', found[i + 1], id)
    redis.call('HINCRBY', P .. 'ledger', 'discarded', -1)
    count('restored:' .. ARGV[1])
    remember('job.restore', redis.call('HGET', job, 'source'), id, cjson.encode({by = ARGV[1], batch = ARGV[2]}))
    moved[#moved + 1] = id
  end
end
if #found == 0 then redis.call('ZREM', P .. 'batches', ARGV[2]) end
flush_counts()
return moved
