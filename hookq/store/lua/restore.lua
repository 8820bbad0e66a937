#!lua flags=allow-oom
-- restore: discarded jobs are dead letters again, with the time of their death.
-- ARGV: who does it (JSON: by, who, act, what), then ids. Returns the ids that were restored.
local who = cjson.decode(ARGV[1])
local moved = {}
for i = 2, #ARGV do
  local id, job = ARGV[i], P .. 'job:' .. ARGV[i]
  local source, batch = unpack(redis.call('HMGET', job, 'source', 'batch'))
  local died_at = batch and redis.call('ZSCORE', P .. 'batch:' .. batch, id)
  if died_at then
    redis.call('ZREM', P .. 'batch:' .. batch, id)
    if redis.call('EXISTS', P .. 'batch:' .. batch) == 0 then redis.call('ZREM', P .. 'batches', batch) end
    redis.call('PERSIST', job)
    redis.call('HDEL', job, 'batch')
    enter_dead(id, died_at)
    redis.call('HINCRBY', P .. 'ledger', 'discarded', -1)
    count('restored:' .. who.by)
    remember('job.restore', source, id, ARGV[1])
    moved[#moved + 1] = id
  end
end
record_act('restore', ARGV[1], #moved)
flush_counts()
return moved
