#!lua
-- mark_read: records up to where a repartition reads a partition, unless the partition lacks what it has read before.
--
-- KEYS[1] stream   KEYS[2] sequences (hash)
-- ARGV[1] the topic that is filled   ARGV[2] the ID up to which entries of the partition were copied to it
--
-- Returns {"read", ID}       the last ID of the stream is recorded: every entry up to it is there now
--         {"gone"}           the record of this repartition is missing or before ARGV[2], so the server has gone back
--                            to older data: nothing was changed
--         {"damaged", key}   the partition has lost this key: nothing was changed
--
-- Invariant: while the server has a record, it has every entry that was appended before it, because a server loses its
-- latest writes first.
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
local last = streams.last_id(KEYS[1])
last = last == '' and '0-0' or last
call('HSET', KEYS[2], '!copying', ARGV[1] .. ' ' .. last)
return { 'read', last }
