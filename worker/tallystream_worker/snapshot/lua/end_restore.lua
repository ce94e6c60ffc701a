#!lua
-- end_restore: writes the description of a restored deployment, in the call that ends the restore.
--
-- KEYS[1] meta (hash)   ARGV[1] the field that shows that a restore runs   ARGV[2] another field to remove
--         ARGV[3..] field, value, field, value, ...
--
-- Returns {"ended"}
--
-- Invariant: readers find the description only when every partition is restored.
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
redis.call('HDEL', KEYS[1], ARGV[1], ARGV[2])
return { 'ended' }
