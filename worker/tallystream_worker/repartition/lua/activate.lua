#!lua
-- activate: makes the new topic the live one.
--
-- KEYS[1] the root's meta (hash)   ARGV[1] the new topic   ARGV[2] the one before   ARGV[3] the partitions of that one
-- ARGV[4] the number of the closing: see close.lua
--
-- Returns {"active"}      the new topic is live; it may have been live before
--         {"given_up"}    the new topic is not being filled
--         {"overtaken"}   a later closing has begun, which may have reopened the topic before: nothing was changed
--
-- Invariant: the call that makes the new topic live also records in the meta hash that the topic before is kept. Every
-- partition of that topic was closed by this closing, and nothing has reopened it.
local call = redis.call
local live, filled, closing = unpack(call('HMGET', KEYS[1], 'log', 'moving', 'closing'))
if live == ARGV[1] then
  return { 'active' }
elseif filled ~= ARGV[1] then
  return { 'given_up' }
elseif closing ~= ARGV[4] then
  return { 'overtaken' }
end
call('HSET', KEYS[1], 'log', ARGV[1], 'kept', ARGV[2], 'partitions@' .. ARGV[2], ARGV[3])
call('HDEL', KEYS[1], 'moving', 'moving-partitions')
return { 'active' }
