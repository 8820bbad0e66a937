-- settle: what ends an attempt, for a batch: complete, reschedule, bury, or release (a lease that was not started).
-- ARGV, 9 for each: source, entry, outcome (done retry dead ready), delay in seconds, attempt ('' if it did not run); of
-- a dead letter reason, cause and traceback; facts (JSON, kept and never read here: its text is the handler's).
-- Returns for each 1, or 0 when the lease is no longer the caller's, and then nothing was changed.
-- The fence (R5) is the entry: reclaim, promote and redrive make new entries, so XACK finds the old one once only.
-- Everything that could be refused is looked at before the first write: a script that fails halfway stays halfway.
for i = 1, #ARGV, 9 do
  local delay = tonumber(ARGV[i + 3])
  if not (delay and delay >= 0 and delay < 1e10) then return redis.error_reply('ERR a delay is no number of seconds') end
end
local result, completed = {}, 0
for i = 1, #ARGV, 9 do
  local source, entry, outcome, delay, attempt, reason, cause, trace, facts = unpack(ARGV, i, i + 8)
  -- The job is done with its entry, whose body need not be copied; in any other case it goes on.
  local values = outcome ~= 'done' and entry_values(source, entry)
  if values == nil or redis.call('XACK', ready(source), 'workers', entry) == 0 then
    count('refused_settles')
    result[#result + 1] = 0
  else
    if outcome ~= 'ready' then count('attempts:' .. source .. ':' .. outcome) end
    if outcome == 'done' then
      completed = completed + 1
      count('done:' .. source)
      remember('job.complete', source, reason, facts)
    elseif outcome == 'ready' then
      enqueue(source, values)
    else
      values[ATTEMPT] = attempt ~= '' and attempt or values[ATTEMPT]
      -- It ran to an end, so whatever killed a worker was not this.
      if attempt ~= '' then values[DEATHS], values[SUSPECT] = '0', '0' end
      if outcome == 'retry' then
        park(source, values, facts)
        redis.call('ZADD', P .. 'retry', now() + tonumber(delay), values[2])
        remember('job.reschedule', source, values[2], facts)
      else
        bury(source, values, facts, reason, cause, trace)
      end
    end
    redis.call('XDEL', ready(source), entry)
    result[#result + 1] = 1
  end
end
if completed > 0 then redis.call('HINCRBY', P .. 'ledger', 'done', completed) end
flush_counts()
return result
