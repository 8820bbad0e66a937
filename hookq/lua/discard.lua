-- discard: dead letters leave; a batch of them can be restored until it expires.
-- ARGV: who does it, the batch, seconds it is kept, then ids. Returns the ids that were discarded.
local batch, keep = P .. 'batch:' .. ARGV[2], ARGV[3]
local moved = {}
for i = 4, #ARGV do
  local id = ARGV[i]
  local died_at = redis.call('ZSCORE', P .. 'dead', id)
  if died_at then
    redis.call('ZREM', P .. 'dead', id)
    redis.call('ZADD', batch, died_at, id)
    redis.call('EXPIRE', P .. 'job:' .. id, keep)
    redis.call('HINCRBY', P .. 'ledger', 'discarded', 1)
    count('discarded:' .. ARGV[1])
    remember('job.discard', redis.call('HGET', P .. 'job:' .. id, 'source') or '', id, cjson.encode({by = ARGV[1], batch = ARGV[2]}))
    moved[#moved + 1] = id
  end
end
if #moved > 0 then
  redis.call('EXPIRE', batch, keep)
  redis.call('ZADD', P .. 'batches', now(), ARGV[2])
  redis.call('ZREMRANGEBYSCORE', P .. 'batches', '-inf', now() - tonumber(keep))
end
flush_counts()
return moved
