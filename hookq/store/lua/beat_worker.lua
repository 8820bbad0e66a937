#!lua flags=allow-oom
-- beat_worker: a worker lives. A script, so that it can say so while memory is full: who does not is taken for dead.
-- ARGV: consumer ('' for none: only counters are raised), its heartbeat (JSON), then pairs of counter and increment.
-- Returns nothing.
if ARGV[1] ~= '' then redis.call('HSET', P .. 'workers', ARGV[1], now() .. '\n' .. ARGV[2]) end
for i = 3, #ARGV, 2 do count(ARGV[i], tonumber(ARGV[i + 1])) end
flush_counts()
