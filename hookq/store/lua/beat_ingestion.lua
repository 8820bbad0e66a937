#!lua flags=allow-oom
-- beat_ingestion: an ingestion process lives, and every host's page can say so.
-- ARGV: its host, its name, facts (JSON; '' at its end: it is forgotten). Returns the time, so that hosts agree about it.
-- Of a host that is heard of, whoever is silent has ended. Of one that is not, all are remembered for a day: it may be cut
-- off, with deliveries in its spool.
local at = now()
if ARGV[3] == '' then
  redis.call('HDEL', P .. 'ingestion', ARGV[2])
else
  redis.call('HSET', P .. 'ingestion', ARGV[2], at .. '\n' .. ARGV[1] .. '\n' .. ARGV[3])
end
local rows = redis.call('HGETALL', P .. 'ingestion')
for i = 1, #rows, 2 do
  local heard_at, host = string.match(rows[i + 1], '^(%S+)\n(%S+)\n')
  local silent = at - (tonumber(heard_at) or 0)
  if silent > 86400 or (silent > 10 and host == ARGV[1]) then redis.call('HDEL', P .. 'ingestion', rows[i]) end
end
return string.format('%.3f', at)
