#!lua flags=allow-oom
-- settle: what ends an attempt, for a batch: complete, reschedule, bury, or release (a lease that was not started).
-- ARGV, 12 for each, with the names below: outcome is done, retry, dead or ready; delay is in seconds; attempt is '' if the
-- job did not run; reason, cause and trace are of a dead letter; facts are JSON, kept and never read here: their text is
-- the handler's; label is how the attempt is counted (done retry dead timeout; '' if it did not run); times are bucket and
-- microseconds of the wait, of the run, and of all since the delivery came, in one text: six arguments would cost a worker 2 µs.
-- Returns for each 1, or 0 when the lease is no longer the caller's, and then nothing was changed.
-- The fence (R5) is the entry: reclaim, promote and redrive make new entries, so XACK finds the old one once only.
-- Everything that could be refused is looked at before the first write: a script that fails halfway stays halfway.
local EACH = 12
for i = 1, #ARGV, EACH do
  local delay = tonumber(ARGV[i + 3])
  if not (delay and delay >= 0 and delay < 1e10) then return redis.error_reply('ERR a delay is no number of seconds') end
end
local result, completed = {}, 0
for i = 1, #ARGV, EACH do
  local source, entry, outcome, delay, attempt, id, reason, cause, trace, facts, label, times = unpack(ARGV, i, i + EACH - 1)
  -- The job is done with its entry, whose body need not be copied; in any other case it goes on.
  local values = outcome ~= 'done' and entry_values(source, entry)
  if values == nil or redis.call('XACK', ready(source), 'workers', entry) == 0 then
    count('refused_settles')
    result[#result + 1] = 0
  else
    if label ~= '' then
      local wait, wait_us, run, run_us, all, all_us = string.match(times, '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$')
      count('attempts:' .. source .. ':' .. label)
      observe('wait', source, wait, wait_us)
      observe('attempt', source, run, run_us)
      if outcome == 'done' then observe('delivery', source, all, all_us) end
    end
    if outcome == 'done' then
      completed = completed + 1
      count('done:' .. source)
      remember('job.complete', source, id, facts)
    elseif outcome == 'ready' then
      enqueue(source, values)
    else
      values[ATTEMPT] = attempt ~= '' and attempt or values[ATTEMPT]
      -- It ran to an end, so whatever killed a worker was not this.
      if attempt ~= '' then values[DEATHS], values[SUSPECT] = '0', '0' end
      if outcome == 'retry' then
        park(source, values, facts)
        redis.call('ZADD', P .. 'retry', now() + tonumber(delay), id)
        redis.call('HINCRBY', P .. 'retries', source, 1)
        remember('job.reschedule', source, id, facts)
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
