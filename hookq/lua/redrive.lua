-- redrive: dead letters become ready, with fresh attempts; one that killed workers stays a suspect.
-- ARGV: who does it (page, command), then ids. Returns the ids that were put back: one that is no dead letter any
-- more is not among them.
local moved = {}
for i = 2, #ARGV do
  local id = ARGV[i]
  local source, values = parked_values(id)
  if source and redis.call('ZREM', P .. 'dead', id) == 1 then
    values[ATTEMPT], values[DEATHS] = '0', '0'
    enqueue(source, values)
    redis.call('DEL', P .. 'job:' .. id)
    count('redriven:' .. ARGV[1])
    remember('job.redrive', source, id, cjson.encode({by = ARGV[1]}))
    moved[#moved + 1] = id
  end
end
flush_counts()
return moved
