#!lua flags=allow-oom
-- discard: dead letters leave; a batch of them, named by its act, can be restored until it expires.
-- ARGV: who does it (JSON: by, who, act, what), seconds a batch is kept, then ids. Returns the ids that were discarded.
local who, keep = cjson.decode(ARGV[1]), ARGV[2]
local batch = P .. 'batch:' .. who.act
local moved = {}
for i = 3, #ARGV do
  local id = ARGV[i]
  local source, died_at = leave_dead(id)
  if source then
    redis.call('ZADD', batch, died_at, id)
    redis.call('HSET', P .. 'job:' .. id, 'batch', who.act)
    redis.call('EXPIRE', P .. 'job:' .. id, keep)
    redis.call('HINCRBY', P .. 'ledger', 'discarded', 1)
    count('discarded:' .. who.by)
    remember('job.discard', source, id, ARGV[1])
    moved[#moved + 1] = id
  end
end
if #moved > 0 then
  redis.call('EXPIRE', batch, keep)
  redis.call('ZADD', P .. 'batches', now(), who.act)
  redis.call('ZREMRANGEBYSCORE', P .. 'batches', '-inf', now() - tonumber(keep))
end
record_act('discard', ARGV[1], #moved)
flush_counts()
return moved
