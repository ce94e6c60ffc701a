#!lua
-- go_back: moves the group back, because the stream has entries up to its position that are in no file.
--
-- KEYS[1] stream   KEYS[2] archive (hash)
-- ARGV[1] group   ARGV[2] the group's position, as it was read before the files were listed
-- ARGV[3] the first ID of the stream, as it was read   ARGV[4] the new position
--
-- Returns {"back"}
--         {"moved"}   the group's position or the first entry has changed: another archiver has moved the group, or
--                     entries were trimmed; nothing was changed
-- Raises NOGROUP if the group does not exist.
--
-- Invariant: a file that begins after the new position states that no entry is missing between the two. So the new
-- position must be one after which no entry was trimmed. An open range is forgotten: it began after the old position.
local streams = require('tallystream.storage.lua.lib.streams')
local call = redis.call

local is_same = streams.existing_group(KEYS[1], ARGV[1])['last-delivered-id'] == ARGV[2]
local first = call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if not is_same or not first or first[1] ~= ARGV[3] then
  return { 'moved' }
end
call('XGROUP', 'SETID', KEYS[1], ARGV[1], ARGV[4])
call('DEL', KEYS[2])
return { 'back' }
