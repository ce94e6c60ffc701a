#!lua
-- point: another log holds from here on.
--
-- KEYS[1] the root's meta (hash)   ARGV[1] the log   ARGV[2] the one before   ARGV[3] the partitions of that one
--
-- Returns {"holds"}      now, or since before
--         {"given up"}   it is not the one that is being filled
local call = redis.call
local log, moving = unpack(call('HMGET', KEYS[1], 'log', 'moving'))
if log == ARGV[1] then
  return { 'holds' }
elseif moving ~= ARGV[1] then
  return { 'given up' }
end
call('HSET', KEYS[1], 'log', ARGV[1], 'kept', ARGV[2], 'partitions@' .. ARGV[2], ARGV[3])
call('HDEL', KEYS[1], 'moving', 'moving-partitions')
return { 'holds' }
