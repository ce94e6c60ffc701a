#!lua
-- switch: makes another generation the live one of a partition, if it has counted all that the present one has.
--
-- KEYS[1] stream   KEYS[2] live generation   KEYS[3] sequences (hash)
-- ARGV[1] present generation   ARGV[2] its group   ARGV[3] the generation to be live   ARGV[4] its group
-- ARGV[5] the number of the rules that the generation to be live is counted by; 0 for none
-- ARGV[6] the number of the command: see claim_turn.lua
--
-- Returns {"switched"}   the other generation is live; it may have been live before
--         {"incomplete"} the other generation lacks an entry that the present one may have counted
--         {"other"}      neither of the two is live
--         {"overtaken"}  a later command has taken the partition, or a failover has taken back that this one has:
--                        nothing was changed
--         {"damaged", key}   the partition has lost this key (see lib/sentinels.lua); nothing was changed
-- Raises NOGROUP if the group of the generation to be live does not exist.
--
-- Invariant: the new generation contains every entry of the present one, so no total goes back. The present generation
-- has counted at most the entries delivered to its group, and decided ones; after the switch, apply.lua and decide.lua
-- refuse to count in it. A process that was paused does not switch what a later command has switched.
local generations = require('tallystream.storage.lua.lib.generations')
local maps = require('tallystream.storage.lua.lib.maps')
local sentinels = require('tallystream.storage.lua.lib.sentinels')
local streams = require('tallystream.storage.lua.lib.streams')
local call = redis.call
local stream = KEYS[1]
local LATER = 100 -- entries that may wait to be counted, if none of them was decided

local lost = sentinels.lost(stream)
if lost then
  return { 'damaged', lost }
end
if call('HGET', KEYS[3], '!turn') ~= ARGV[6] then
  return { 'overtaken' }
end
local live = string.match(generations.live(KEYS[2]), '^(%d+) ?%d*$') -- no match if the partition is closed
if live == ARGV[3] then
  return { 'switched' }
elseif live ~= ARGV[1] then
  return { 'other' }
end
local present, new = streams.group(stream, ARGV[2]), streams.existing_group(stream, ARGV[4])
local counted = present and present['last-delivered-id'] or '0-0'
-- Compare entries, not the two groups' last IDs: if the present generation's last entries are gone from the stream, the
-- new generation counted them from the archive, and its group never receives them.
local waiting = call('XRANGE', stream, '(' .. new['last-delivered-id'], '+', 'COUNT', LATER)
if new.pending > 0 or #waiting == LATER then
  return { 'incomplete' }
end
for _, entry in ipairs(waiting) do
  local decided = maps.from_flat(entry[2]).d -- decide.lua has counted it in the present generation already
  if decided or not streams.is_before(counted, entry[1]) then
    return { 'incomplete' }
  end
end
-- With the number, the script that counts by the next rules records their place: see lib/revisions.lua.
call('SET', KEYS[2], ARGV[5] == '0' and ARGV[3] or ARGV[3] .. ' ' .. ARGV[5])
return { 'switched' }
