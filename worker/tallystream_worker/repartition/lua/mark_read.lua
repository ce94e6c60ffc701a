#!lua
-- mark_read: records up to where a repartition reads a partition, unless the partition lacks what it has read before.
--
-- KEYS[1] stream   KEYS[2] sequences (hash)   KEYS[3] retention holds (hash)
-- ARGV[1] the topic that is filled   ARGV[2] the ID up to which entries of the partition were copied to it
-- ARGV[3] the name of the repartition's retention hold
--
-- Returns {"read", ID}       the last ID of the stream is recorded: every entry up to it is there now
--         {"gone"}           the record of this repartition is missing or before ARGV[2], so the server has gone back
--                            to older data: nothing was changed
--         {"unheld"}         the retention hold is missing, so entries may have been trimmed: nothing was changed
--         {"damaged", key}   the partition has lost this key: nothing was changed
--
-- Invariant: while the server has a record, it has every entry that was appended before it, because a server loses its
-- latest writes first. It also has the retention hold, which was there before the record.
local streams = require('tallystream.storage.lua.lib.streams')
local call = redis.call

local begun, record = unpack(call('HMGET', KEYS[2], '!begun', '!copying'))
if not begun then
  return { 'damaged', KEYS[2] }
end
local topic, read = string.match(record or '', '^(%d+) (.+)$')
if topic ~= ARGV[1] then
  read = '0-0'
end
if streams.is_before(read, ARGV[2]) then
  return { 'gone' }
end
if call('HEXISTS', KEYS[3], ARGV[3]) == 0 then
  return { 'unheld' }
end
local last = streams.last_id(KEYS[1])
last = last == '' and '0-0' or last
call('HSET', KEYS[2], '!copying', ARGV[1] .. ' ' .. last)
return { 'read', last }
