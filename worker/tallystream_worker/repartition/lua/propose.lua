#!lua
-- propose: reserves a number for the new topic of a repartition, unless a topic is being filled already.
--
-- KEYS[1] the root's meta (hash)   ARGV[1] number of partitions of the new topic
--
-- Returns {"moving", topic}         this topic is being filled
--         {"other", partitions}     a topic with this other number of partitions is being filled
--         {"kept", topic}           this earlier topic is still kept
--         {"gone"}                  the hash describes no deployment: it was deleted, or a restore runs
--
-- Invariant: no number is used twice, so no producer mistakes one topic for another.
local call = redis.call
if call('HEXISTS', KEYS[1], 'layout') == 0 then
  return { 'gone' }
end
local moving, partitions, kept, live, newest =
  unpack(call('HMGET', KEYS[1], 'moving', 'moving-partitions', 'kept', 'log', 'newest-log'))
if moving then
  if partitions ~= ARGV[1] then
    return { 'other', partitions }
  end
  return { 'moving', moving }
end
if kept then
  return { 'kept', kept }
end
local number = string.format('%.0f', math.max(tonumber(newest or '1'), tonumber(live or '1')) + 1)
call('HSET', KEYS[1], 'moving', number, 'moving-partitions', ARGV[1], 'newest-log', number)
return { 'moving', number }
