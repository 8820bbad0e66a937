-- beat: a worker lives. A script, so that it can say so while memory is full: who does not is taken for dead.
-- ARGV: consumer, its heartbeat (JSON). Returns nothing.
redis.call('HSET', P .. 'workers', ARGV[1], ARGV[2])
