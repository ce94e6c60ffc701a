#!lua
-- give_up: gives up the topic that is being filled, so that it never becomes the live one.
--
-- KEYS[1] the root's meta (hash)   ARGV[1] the topic
--
-- Returns {"given_up"}
--         {"other"}      the topic is not being filled: it may be the live one now; nothing was changed
--
-- Invariant: a topic that activate.lua has made live cannot be given up, and one that was given up never becomes live.
-- From then on, the field `left` has the topic, until its keys are removed: so an interrupted removal can be repeated.
local call = redis.call
local moving, partitions, left = unpack(call('HMGET', KEYS[1], 'moving', 'moving-partitions', 'left'))
if moving ~= ARGV[1] then
  return { 'other' }
end
local added = moving .. ':' .. partitions
call('HSET', KEYS[1], 'left', left and left ~= '' and left .. ' ' .. added or added)
call('HDEL', KEYS[1], 'moving', 'moving-partitions')
return { 'given_up' }
