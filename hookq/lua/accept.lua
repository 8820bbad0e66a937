-- accept: ready jobs for a batch of verified deliveries, each unless it was seen before (R6). All or nothing: without
-- allow-oom Redis refuses the script before it starts when memory is full.
-- ARGV: the number of deliveries n, then 9 for each: dedupe_s, source, delivery_id, id, event_type, received_at, head,
-- body, secret; then, if there are counters to raise, an id of this raising and pairs of counter and increment.
-- Returns for each delivery the id of its job: its own when accepted, another one when it is a duplicate.
-- A lost reply is harmless: the same call again finds its own id and changes nothing.
local DAY = 86400
local ids, streams, recent = {}, {}, {}
local n = tonumber(ARGV[1])
for i = 0, n - 1 do
  local at = 2 + 9 * i
  local dedupe, source, delivery_id, id = tonumber(ARGV[at]), ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
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
    if not streams[source] then
      streams[source] = ready(source)
      if redis.call('SADD', P .. 'sources', source) == 1 then
        -- Here, and not only by workers: a worker that starts while memory is full is not allowed to.
        redis.pcall('XGROUP', 'CREATE', streams[source], 'workers', '0', 'MKSTREAM')
      end
    end
    redis.call('XADD', streams[source], '*', 'v', '1', 'id', id, 'delivery_id', delivery_id, 'event_type', ARGV[at + 4],
      'received_at', ARGV[at + 5], 'attempt', '0', 'deaths', '0', 'suspect', '0', 'head', ARGV[at + 6], 'body', ARGV[at + 7],
      'secret', ARGV[at + 8])
    count('accepted:' .. source)
    count('secret:' .. source .. ':' .. ARGV[at + 8])
    recent[#recent + 1] = id .. '\n' .. source .. '\n' .. ARGV[at + 4]
  elseif first ~= id then
    count('duplicates:' .. source)
    remember('delivery.duplicate', source, first, cjson.encode({delivery_id = delivery_id}))
  end
  ids[i + 1] = first or id
end
local flush = ARGV[2 + 9 * n]
if flush and redis.call('SET', P .. 'made:' .. flush, '', 'NX', 'EX', 3600) then
  for i = 3 + 9 * n, #ARGV, 2 do count(ARGV[i], tonumber(ARGV[i + 1])) end
end
if #recent > 0 then
  redis.call('HINCRBY', P .. 'ledger', 'accepted', #recent)
  -- Two commands for the whole batch: what came lately, for the page, costs a delivery next to nothing.
  redis.call('LPUSH', P .. 'recent', unpack(recent))
  redis.call('LTRIM', P .. 'recent', 0, 24)
end
flush_counts()
return ids
