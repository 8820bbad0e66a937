-- reclaim: the leases of a worker that is gone become ready again, as new entries, so that it cannot settle them (R5).
-- ARGV: consumer; idle time in milliseconds below which a lease is left alone; deaths that make a dead letter;
-- '1' to forget the worker when nothing of it is left.
-- Returns 4 for each job: source, id, outcome (ready or dead), deaths.
-- Who pays (R9): the job the worker announced as being in hand, or the only one it had. Of several unannounced ones
-- nobody knows which it was: they become suspects, are announced from now on, and one death is held against each at
-- most, so a job that kills every worker is buried after exactly three starts and its neighbours are not.
local consumer, idle, max_deaths = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local hand = redis.call('HGET', P .. 'hand', consumer)
local held, total = {}, 0
for _, source in ipairs(redis.call('SMEMBERS', P .. 'sources')) do
  local pending = redis.pcall('XPENDING', ready(source), 'workers', '-', '+', 10000, consumer)
  for _, lease in ipairs(pending.err and {} or pending) do
    total = total + 1
    if lease[3] >= idle then held[#held + 1] = {source, lease[1]} end
  end
end
local moved = {}
for _, lease in ipairs(held) do
  local source, entry = lease[1], lease[2]
  local values = entry_values(source, entry)
  redis.call('XACK', ready(source), 'workers', entry)
  if values then
    local charged = hand == entry or (not hand and total == 1)
    local deaths = tonumber(values[DEATHS])
    if charged then
      deaths = deaths + 1
      values[ATTEMPT] = tostring(tonumber(values[ATTEMPT]) + 1)
      values[SUSPECT] = '1'
    elseif not hand then
      deaths = math.max(deaths, 1)
      values[SUSPECT] = '1'
    end
    values[DEATHS] = tostring(deaths)
    local outcome = 'ready'
    if charged and deaths >= max_deaths then
      outcome = 'dead'
      local facts = cjson.encode({attempt = tonumber(values[ATTEMPT]), worker = consumer, error = deaths .. ' workers ended while running it'})
      park(source, values, facts)
      redis.call('HSET', P .. 'job:' .. values[2], 'reason', 'killed_worker')
      redis.call('ZADD', P .. 'dead', now(), values[2])
      count('dead:' .. source .. ':killed_worker')
      remember('job.bury', source, values[2], facts)
    else
      enqueue(source, values)
      remember('job.reclaim', source, values[2], cjson.encode({worker = consumer, deaths = deaths}))
    end
    count('reclaimed:' .. source)
    redis.call('XDEL', ready(source), entry)
    for _, value in ipairs({source, values[2], outcome, tostring(deaths)}) do moved[#moved + 1] = value end
  end
end
if ARGV[4] == '1' and total == #held then
  for _, source in ipairs(redis.call('SMEMBERS', P .. 'sources')) do
    redis.pcall('XGROUP', 'DELCONSUMER', ready(source), 'workers', consumer)
  end
  redis.call('HDEL', P .. 'hand', consumer)
  redis.call('HDEL', P .. 'workers', consumer)
end
flush_counts()
return moved
