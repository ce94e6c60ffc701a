#!lua
-- forsake: the log that is being filled will never hold.
--
-- KEYS[1] the root's meta (hash)   ARGV[1] the log
-- Returns 1, or 0 where it is not being filled: it may hold by now.
if redis.call('HGET', KEYS[1], 'moving') ~= ARGV[1] then
  return 0
end
redis.call('HDEL', KEYS[1], 'moving', 'moving-partitions')
return 1
