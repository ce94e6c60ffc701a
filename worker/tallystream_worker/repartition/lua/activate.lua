#!lua
-- activate: makes the new topic the live one.
--
-- KEYS[1] the root's meta (hash)   ARGV[1] the new topic   ARGV[2] the one before   ARGV[3] the partitions of that one
--
-- Returns {"active"}     the new topic is live; it may have been live before
--         {"given_up"}   the new topic is not being filled
--
-- Invariant: the call that makes the new topic live also records in the meta hash that the topic before is kept.
local call = redis.call
local live, filled = unpack(call('HMGET', KEYS[1], 'log', 'moving'))
if live == ARGV[1] then
  return { 'active' }
elseif filled ~= ARGV[1] then
  return { 'given_up' }
end
call('HSET', KEYS[1], 'log', ARGV[1], 'kept', ARGV[2], 'partitions@' .. ARGV[2], ARGV[3])
call('HDEL', KEYS[1], 'moving', 'moving-partitions')
return { 'active' }
