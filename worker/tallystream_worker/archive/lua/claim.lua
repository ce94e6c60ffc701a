#!lua
-- claim: fixes which entries go into the next file of the archive, so that every archiver writes the same file.
--
-- KEYS[1] stream   KEYS[2] archive (hash)
-- ARGV[1] group   ARGV[2] the ID up to which everything is archived   ARGV[3] first   ARGV[4] last   ARGV[5] entries
--
-- Returns {"claimed", first, last, entries}   the range to write: the caller's, or that of an earlier claim
--         {"moved"}                           the group's position has changed: the file has been written
-- Raises NOGROUP if the group does not exist.
--
-- Invariant: at most one range is open; it begins right after the group's position, and none of its entries is trimmed.
local streams = require('tallystream.storage.lua.lib.streams')
local call = redis.call

if streams.existing_group(KEYS[1], ARGV[1])['last-delivered-id'] ~= ARGV[2] then
  return { 'moved' }
end
local first, last, entries = unpack(call('HMGET', KEYS[2], 'first', 'last', 'entries'))
if not (first and last and entries) then -- no range is open, or a field was deleted
  first, last, entries = ARGV[3], ARGV[4], ARGV[5]
  call('HSET', KEYS[2], 'first', first, 'last', last, 'entries', entries)
end
return { 'claimed', first, last, entries }
