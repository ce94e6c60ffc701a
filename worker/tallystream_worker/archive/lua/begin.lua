#!lua
-- begin: creates the group of the archive, and the stream if there is none, and forgets an open range.
--
-- KEYS[1] stream   KEYS[2] archive (hash)
-- ARGV[1] group   ARGV[2] the group's position: the ID up to which everything is archived, or 0-0
-- ARGV[3] 1 if the archive has entries of the partition, else 0
--
-- Returns {"begun"}
--         {"there"}          the group exists; nothing was changed
--         {"damaged", key}   the partition has lost this key (see lib/sentinels.lua), or a stream that had entries: a
--                            new stream would hide the loss; nothing was changed
--
-- Invariant: an open range begins right after the group's position. So a range that was open when the group was lost,
-- for example because a restore replaced the stream, is forgotten with it: the new group may have another position. If
-- the file of that range is written, it is ahead of the new group's position, or before it.
--
-- Invariant: a stream whose entries were archived is not created again here, also if its ledger has lost how many
-- entries it had: else its archived entries would look like entries that the server has lost.
local sentinels = require('tallystream.storage.lua.lib.sentinels')
local streams = require('tallystream.storage.lua.lib.streams')
local call = redis.call
local stream, group, position = KEYS[1], ARGV[1], ARGV[2]

local exists = call('EXISTS', stream) == 1
if exists and streams.group(stream, group) then
  return { 'there' }
end
local lost = sentinels.lost(stream) or (not exists and (ARGV[3] == '1' or sentinels.is_stream_lost(stream)) and stream)
if lost then
  return { 'damaged', lost }
end
if position == '0-0' then
  call('XGROUP', 'CREATE', stream, group, position, 'MKSTREAM', 'ENTRIESREAD', 0)
else -- it is not known how many entries the group has read
  call('XGROUP', 'CREATE', stream, group, position, 'MKSTREAM')
end
call('DEL', KEYS[2])
return { 'begun' }
