#!lua
-- settle: closes the open range after its file is complete: the next range begins after it, and its entries may be
-- trimmed.
--
-- KEYS[1] stream   KEYS[2] archive (hash)
-- ARGV[1] group   ARGV[2] first   ARGV[3] last   ARGV[4] entries
--
-- Returns {"settled"}
--         {"other"}     another range is open, or none, because another archiver has settled this one
-- Raises NOGROUP if the group does not exist.
--
-- Invariant: the group's position moves forward only past entries that are in a complete file. Only go_back.lua moves
-- it back.
local streams = require('tallystream.storage.lua.lib.streams')
local call = redis.call
local stream, archive, group, first, last = KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3]

if call('HGET', archive, 'first') ~= first or call('HGET', archive, 'last') ~= last then
  return { 'other' }
end
local read = streams.existing_group(stream, group)['entries-read']
if read then
  call('XGROUP', 'SETID', stream, group, last, 'ENTRIESREAD', string.format('%.0f', read + ARGV[4]))
else -- the server does not know how many entries the group has read, and this script does not either
  call('XGROUP', 'SETID', stream, group, last)
end
call('DEL', archive)
return { 'settled' }
