#!lua
-- begin_restore: replaces the description of a deployment by a field that shows that it is being restored.
--
-- KEYS[1] meta (hash)   ARGV[1..] the fields and values that replace it: the field that shows that a restore runs, with
--         the retractions that the restored rules will have, and what must outlast the restore
--
-- Returns {"begun"}
--
-- Invariant: the hash exists at every moment, so no process creates another deployment.
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], unpack(ARGV))
return { 'begun' }
