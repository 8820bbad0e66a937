#!lua flags=allow-oom
-- redrive: dead letters become ready, with fresh attempts; one that killed workers stays a suspect.
-- ARGV: who does it (JSON: by, who, act, what), then ids. Returns the ids that were put back: one that is no dead
-- letter any more is not among them.
local who = cjson.decode(ARGV[1])
local moved = {}
for i = 2, #ARGV do
  local id = ARGV[i]
  local source, values = parked_values(id)
  if source and leave_dead(id) then
    values[ATTEMPT], values[DEATHS] = '0', '0'
    enqueue(source, values)
    redis.call('DEL', P .. 'job:' .. id)
    count('redriven:' .. who.by)
    remember('job.redrive', source, id, ARGV[1])
    moved[#moved + 1] = id
  end
end
record_act('retry', ARGV[1], #moved)
flush_counts()
return moved
