#!lua
-- continue_after: moves the group to an entry of a complete file, after the server has lost its position or its log.
--
-- KEYS[1] stream   KEYS[2] archive (hash)
-- ARGV[1] group   ARGV[2] the group's position, as it was read before the files   ARGV[3] the entry
--
-- Returns {"continued"}
--         {"moved"}       the group's position has changed: another archiver has continued; nothing was changed
-- Raises NOGROUP if the group does not exist.
--
-- Invariant: as in settle.lua. An open range is forgotten: it was of the lost log, or its entries are in files.
local streams = require('tallystream.storage.lua.lib.streams')
local call = redis.call

if streams.existing_group(KEYS[1], ARGV[1])['last-delivered-id'] ~= ARGV[2] then
  return { 'moved' }
end
if ARGV[3] ~= ARGV[2] then
  call('XGROUP', 'SETID', KEYS[1], ARGV[1], ARGV[3])
end
call('DEL', KEYS[2])
return { 'continued' }
