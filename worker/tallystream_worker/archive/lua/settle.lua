#!lua
-- settle: the open range is in a file; what lies behind it is next, and what lies in it may be trimmed.
--
-- KEYS[1] stream   KEYS[2] archive (hash)
-- ARGV[1] group   ARGV[2] first   ARGV[3] last   ARGV[4] entries
--
-- Returns 1, or 0 where another range is open: somebody else has settled this one.
--
-- Invariant: the group's position moves forward only, and only past entries that a complete file holds.
if redis.call('HGET', KEYS[2], 'first') ~= ARGV[2] or redis.call('HGET', KEYS[2], 'last') ~= ARGV[3] then
  return 0
end
local read
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local about = {}
  for i = 1, #group, 2 do
    about[group[i]] = group[i + 1]
  end
  if about.name == ARGV[1] then
    read = about['entries-read']
  end
end
if read then -- else the server cannot tell the group's lag, and this cannot teach it
  redis.call('XGROUP', 'SETID', KEYS[1], ARGV[1], ARGV[3], 'ENTRIESREAD', string.format('%.0f', read + ARGV[4]))
else
  redis.call('XGROUP', 'SETID', KEYS[1], ARGV[1], ARGV[3])
end
redis.call('DEL', KEYS[2])
return 1
