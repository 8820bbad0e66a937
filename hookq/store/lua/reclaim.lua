#!lua flags=allow-oom
-- reclaim: the leases of a worker that is gone become ready again, as new entries, so that it cannot settle them (R5).
-- ARGV: consumer; idle time in milliseconds below which a lease is left alone; deaths that make a dead letter;
-- '1' to forget the worker when nothing of it is left; the entry it had in hand, '' for none, '?' when nobody saw.
-- Returns 4 for each job: source, id, outcome (ready or dead), deaths.
-- Who pays (R9): only the job in hand. Where nobody saw which that was, it may be any of those leased: each becomes a
-- suspect, and is run alone and announced from now on, so that a next death is its own. None pays for a doubt.
local consumer, idle, max_deaths, hand = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[5]
local announced = redis.call('HGET', P .. 'hand', consumer)
local held, total = {}, 0
for _, source in ipairs(redis.call('SMEMBERS', P .. 'sources')) do
  local pending = redis.pcall('XPENDING', ready(source), 'workers', '-', '+', 10000, consumer)
  for _, lease in ipairs(pending.err and {} or pending) do
    total = total + 1
    if hand == '?' and lease[1] == announced then hand = announced end
    if lease[3] >= idle then held[#held + 1] = {source, lease[1]} end
  end
end
if hand == '?' and total == 1 and held[1] then hand = held[1][2] end
local moved, left = {}, 0
for _, lease in ipairs(held) do
  local source, entry = lease[1], lease[2]
  local values = entry_values(source, entry)
  local known = not values or is_known(values)
  if known then redis.call('XACK', ready(source), 'workers', entry) else left = left + 1 end
  if values and known then
    local deaths = tonumber(values[DEATHS]) or 0
    if hand == entry then
      deaths = deaths + 1
      values[ATTEMPT] = tostring((tonumber(values[ATTEMPT]) or 0) + 1)
    end
    if hand == entry or hand == '?' then values[SUSPECT] = '1' end
    values[DEATHS] = tostring(deaths)
    local outcome = 'ready'
    if hand == entry and deaths >= max_deaths then
      outcome = 'dead'
      local facts = cjson.encode({attempt = tonumber(values[ATTEMPT]), worker = consumer, error = deaths .. ' workers ended while running it'})
      bury(source, values, facts, 'killed_worker', 'killed_worker', '')
    else
      enqueue(source, values)
      remember('job.reclaim', source, values[ID], cjson.encode({worker = consumer, deaths = deaths, in_hand = hand == entry}))
    end
    count('reclaimed:' .. source)
    redis.call('XDEL', ready(source), entry)
    for _, value in ipairs({source, values[ID], outcome, tostring(deaths)}) do moved[#moved + 1] = value end
  end
end
-- Its leases would go with it: whoever had more than one look sees waits for the next.
if ARGV[4] == '1' and total == #held and left == 0 and total < 10000 then
  for _, source in ipairs(redis.call('SMEMBERS', P .. 'sources')) do
    redis.pcall('XGROUP', 'DELCONSUMER', ready(source), 'workers', consumer)
  end
  redis.call('HDEL', P .. 'hand', consumer)
  redis.call('HDEL', P .. 'workers', consumer)
end
flush_counts()
return moved
