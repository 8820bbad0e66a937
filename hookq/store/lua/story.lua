#!lua flags=no-writes
-- story: a piece of the history, searched for the events of jobs by the beginning of their id.
-- ARGV: entry to go back from, entry to end at, how many to look at, the beginning of an id.
-- Returns the last entry looked at ('' at the end), then 5 for each event, the latest first: entry, event, source, id, facts.
local entries = redis.call('XREVRANGE', P .. 'history', ARGV[1], ARGV[2], 'COUNT', ARGV[3])
local result = {#entries == tonumber(ARGV[3]) and entries[#entries][1] or ''}
for _, entry in ipairs(entries) do
  local _, event, _, source, _, id, _, facts = unpack(entry[2])
  if string.sub(id, 1, #ARGV[4]) == ARGV[4] then
    for _, value in ipairs({entry[1], event, source, id, facts}) do result[#result + 1] = value end
  end
end
return result
