-- settle: what ends an attempt, for a batch: complete, reschedule, bury, or release (a lease that was not started).
-- ARGV, 10 for each: source, entry, outcome (done retry dead ready), delay in seconds, attempt ('' if it did not run); of
-- a dead letter reason, cause and traceback (of one that is done the id in the place of the reason); facts (JSON, kept
-- and never read here: its text is the handler's); how it is counted: done, retry, dead or timeout, then bucket and
-- microseconds of wait, attempt and delivery, with spaces between ('' if it did not run).
-- Returns for each 1, or 0 when the lease is no longer the caller's, and then nothing was changed.
-- The fence (R5) is the entry: reclaim, promote and redrive make new entries, so XACK finds the old one once only.
-- Everything that could be refused is looked at before the first write: a script that fails halfway stays halfway.
for i = 1, #ARGV, 10 do
  local delay = tonumber(ARGV[i + 3])
  if not (delay and delay >= 0 and delay < 1e10) then return redis.error_reply('ERR a delay is no number of seconds') end
end
local result, completed = {}, 0
for i = 1, #ARGV, 10 do
  local source, entry, outcome, delay, attempt, reason, cause, trace, facts, counted = unpack(ARGV, i, i + 9)
  -- The job is done with its entry, whose body need not be copied; in any other case it goes on.
  local values = outcome ~= 'done' and entry_values(source, entry)
  if values == nil or redis.call('XACK', ready(source), 'workers', entry) == 0 then
    count('refused_settles')
    result[#result + 1] = 0
  else
    local label, wait, wait_us, run, run_us, all, all_us = string.match(counted, '^(%a+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$')
    if label then
      count('attempts:' .. source .. ':' .. label)
      observe('wait', source, wait, wait_us)
      observe('attempt', source, run, run_us)
      if outcome == 'done' then observe('delivery', source, all, all_us) end
    end
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
        redis.call('HINCRBY', P .. 'retries', source, 1)
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
