-- settle: what ends an attempt, for a batch: complete, reschedule, bury, or release (a lease that was not started).
-- ARGV, 6 for each: source, entry, outcome (done retry dead ready), delay in seconds, reason, facts (JSON: attempt, error …).
-- Returns for each 1, or 0 when the lease is no longer the caller's, and then nothing was changed.
-- The fence (R5) is the entry: reclaim, promote and redrive make new entries, so XACK finds the old one once only.
local result = {}
for i = 1, #ARGV, 6 do
  local source, entry, outcome, delay, reason, facts = unpack(ARGV, i, i + 5)
  local values = entry_values(source, entry)
  if not values or redis.call('XACK', ready(source), 'workers', entry) == 0 then
    count('refused_settles')
    result[#result + 1] = 0
  else
    local id, attempt = values[2], tonumber(values[ATTEMPT])
    if outcome == 'ready' then
      enqueue(source, values)
    else
      -- A dead letter that never ran (no attempts were left, no source) has nothing more to count.
      local ran = cjson.decode(facts).attempt
      values[ATTEMPT] = ran and tostring(ran) or values[ATTEMPT]
      count('attempts:' .. source .. ':' .. outcome)
      if outcome == 'done' then
        redis.call('HINCRBY', P .. 'ledger', 'done', 1)
        count('done:' .. source)
        remember('job.complete', source, id, facts)
      elseif outcome == 'retry' then
        park(source, values, facts)
        redis.call('ZADD', P .. 'retry', now() + tonumber(delay), id)
        remember('job.reschedule', source, id, facts)
      else
        park(source, values, facts)
        redis.call('HSET', P .. 'job:' .. id, 'reason', reason)
        redis.call('ZADD', P .. 'dead', now(), id)
        count('dead:' .. source .. ':' .. reason)
        remember('job.bury', source, id, facts)
      end
    end
    redis.call('XDEL', ready(source), entry)
    result[#result + 1] = 1
  end
end
flush_counts()
return result
