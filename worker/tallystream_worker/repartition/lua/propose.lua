#!lua
-- propose: agrees on the topic that the events are to be moved to.
--
-- KEYS[1] the root's meta (hash)   ARGV[1] its partitions
--
-- Returns {"moving", topic}         it is to be filled, also if it was before
--         {"other", partitions}     one with another number of partitions is being filled
--         {"kept", topic}           an earlier one is still there
--
-- Invariant: a number is never given twice, so no producer takes one topic for another.
local call = redis.call
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
