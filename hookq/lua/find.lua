-- find: a chunk of a source's stream, searched for jobs by the beginning of their id; bodies do not leave Redis.
-- ARGV: source, entry to start after ('-' at first), how many to look at, the beginning of an id.
-- Returns the last entry looked at ('' at the end), then pairs of entry and id.
local from = ARGV[2] == '-' and '-' or '(' .. ARGV[2]
local entries = redis.call('XRANGE', ready(ARGV[1]), from, '+', 'COUNT', ARGV[3])
local result = {#entries == tonumber(ARGV[3]) and entries[#entries][1] or ''}
for _, entry in ipairs(entries) do
  local id = entry[2][4]
  if string.sub(id, 1, #ARGV[4]) == ARGV[4] then
    result[#result + 1] = entry[1]
    result[#result + 1] = id
  end
end
return result
