#!lua
-- accept: what makes jobs of the entries that were added just before, in the same MULTI, for a batch of verified
-- deliveries: each is claimed (R6), and the entry of one that was seen before is taken back. All or nothing: Redis
-- refuses the whole transaction when memory is full.
-- ARGV: the number of deliveries n, then 6 for each, in the order of their entries: dedupe_s, source, delivery_id, id,
-- event_type, secret; then, if there are counters to raise, an id of this raising and pairs of counter and increment.
-- Returns for each delivery the id of its job: its own when accepted, another one when it is a duplicate.
-- A lost reply is harmless: the same call again finds its own id and changes nothing.
local DAY = 86400
local ids, recent = {}, {}
local added, extra = {}, {} -- source → how many entries are new; source → which of those are to go again
local n = tonumber(ARGV[1])
for i = 0, n - 1 do
  local at = 2 + 6 * i
  local dedupe, source, delivery_id, id = tonumber(ARGV[at]), ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  if not added[source] then
    redis.call('XLEN', ready(source)) -- raises where XADD could not, before anything is claimed
    if redis.call('SADD', P .. 'sources', source) == 1 then
      -- Here, and not only by workers: a worker that starts while memory is full is not allowed to.
      redis.pcall('XGROUP', 'CREATE', ready(source), 'workers', '0')
    end
    added[source], extra[source] = 0, {}
  end
  added[source] = added[source] + 1
  local first = false
  -- The id itself is claimed where the mark of the delivery would not outlive a retry of this call.
  if delivery_id == '' or dedupe < DAY then
    first = redis.call('SET', P .. 'made:' .. id, id, 'NX', 'GET', 'EX', DAY)
  end
  if not first and delivery_id ~= '' then
    first = redis.call('SET', P .. 'seen:' .. source .. ':' .. delivery_id, id, 'NX', 'GET', 'EX', dedupe)
    -- Whoever asks again about this id is to hear the same: there is no job of this name.
    if first and first ~= id and dedupe < DAY then redis.call('SET', P .. 'made:' .. id, first, 'EX', DAY) end
  end
  if not first then
    count('accepted:' .. source)
    count('secret:' .. source .. ':' .. ARGV[at + 5])
    recent[#recent + 1] = id .. '\n' .. source .. '\n' .. ARGV[at + 4]
  else
    table.insert(extra[source], added[source])
    if first ~= id then
      count('duplicates:' .. source)
      remember('delivery.duplicate', source, first, cjson.encode({delivery_id = delivery_id}))
    end
  end
  ids[i + 1] = first or id
end
for source, places in pairs(extra) do
  if #places > 0 then
    -- The one way to their names, and with their bodies: it is for the few batches that have a duplicate.
    local newest = redis.call('XREVRANGE', ready(source), '+', '-', 'COUNT', added[source])
    for _, place in ipairs(places) do redis.call('XDEL', ready(source), newest[added[source] - place + 1][1]) end
  end
end
local flush = ARGV[2 + 6 * n]
if flush and redis.call('SET', P .. 'made:' .. flush, '', 'NX', 'EX', 3600) then
  for i = 3 + 6 * n, #ARGV, 2 do count(ARGV[i], tonumber(ARGV[i + 1])) end
end
if #recent > 0 then
  redis.call('HINCRBY', P .. 'ledger', 'accepted', #recent)
  -- Two commands for the whole batch: what came lately, for the page, costs a delivery next to nothing.
  redis.call('LPUSH', P .. 'recent', unpack(recent))
  redis.call('LTRIM', P .. 'recent', 0, 24)
end
flush_counts()
return ids
