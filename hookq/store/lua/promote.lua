#!lua flags=allow-oom
-- promote: retries that are due become ready, the oldest first.
-- ARGV: how many at most. Returns pairs of source and id.
local moved = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'retry', '-inf', now(), 'LIMIT', 0, ARGV[1])) do
  local source, values = parked_values(id)
  if source then
    enqueue(source, values)
    redis.call('DEL', P .. 'job:' .. id)
    redis.call('ZREM', P .. 'retry', id)
    redis.call('HINCRBY', P .. 'retries', source, -1)
    moved[#moved + 1] = source
    moved[#moved + 1] = id
  else
    -- A member without its job is an orphan: the audit names it; here it must not stop the others for ever. Nor must a job
    -- of a newer format, which a worker that knows it takes within a second.
    local orphan = redis.call('EXISTS', P .. 'job:' .. id) == 0
    redis.call('ZADD', P .. 'retry', now() + (orphan and 60 or 1), id)
  end
end
return moved
