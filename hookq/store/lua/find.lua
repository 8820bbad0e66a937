#!lua flags=no-writes
-- find: a piece of a source's stream, searched for jobs by the beginning of their id; bodies do not leave Redis.
-- ARGV: source, entry to start at, how many to look at, the beginning of an id.
-- Returns the last entry looked at ('' at the end), the bytes of bodies looked at, then pairs of entry and id.
local entries = redis.call('XRANGE', ready(ARGV[1]), ARGV[2], '+', 'COUNT', ARGV[3])
local result = {#entries == tonumber(ARGV[3]) and entries[#entries][1] or '', 0}
for _, entry in ipairs(entries) do
  local fields = entry[2] -- name, value, name, value …
  local id = fields[2 * ID]
  result[2] = result[2] + #fields[2 * BODY]
  if string.sub(id, 1, #ARGV[4]) == ARGV[4] then
    result[#result + 1] = entry[1]
    result[#result + 1] = id
  end
end
return result
