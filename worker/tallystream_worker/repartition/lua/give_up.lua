#!lua
-- give_up: gives up the topic that is being filled, so that it never becomes the live one.
--
-- KEYS[1] the root's meta (hash)   ARGV[1] the topic
--
-- Returns {"given_up"}
--         {"other"}      the topic is not being filled: it may be the live one now; nothing was changed
--
-- Invariant: a topic that activate.lua has made live cannot be given up, and one that was given up never becomes live.
if redis.call('HGET', KEYS[1], 'moving') ~= ARGV[1] then
  return { 'other' }
end
redis.call('HDEL', KEYS[1], 'moving', 'moving-partitions')
return { 'given_up' }
