#!lua flags=allow-oom
-- announce: which suspect job a worker is about to run alone, so that its death is charged to it (R9).
-- ARGV: consumer, entry, or '' when it is over. Returns nothing. A script, so that it can be said while memory is full.
if ARGV[2] == '' then
  redis.call('HDEL', P .. 'hand', ARGV[1])
else
  redis.call('HSET', P .. 'hand', ARGV[1], ARGV[2])
end
