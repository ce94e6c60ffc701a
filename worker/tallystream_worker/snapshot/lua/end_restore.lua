#!lua
-- end_restore: writes the description of a restored deployment, in the call that ends the restore.
--
-- KEYS[1] meta (hash)   KEYS[2] lock   ARGV[1] the value of the lock of this restore
-- ARGV[2] the field that shows that a restore runs   ARGV[3..5] other fields to remove
-- ARGV[6..] field, value, field, value, ...
--
-- Returns {"ended"}
--         {"overtaken"}   the lock is not that of this restore: nothing was changed
--
-- Invariant: readers find the description only when every partition is restored.
local call = redis.call
if call('GET', KEYS[2]) ~= ARGV[1] then
  return { 'overtaken' }
end
call('HSET', KEYS[1], unpack(ARGV, 6))
call('HDEL', KEYS[1], unpack(ARGV, 2, 5))
call('DEL', KEYS[2])
return { 'ended' }
