#!lua
-- begin_restore: replaces the description of a deployment by a field that shows that it is being restored.
--
-- KEYS[1] meta (hash)   KEYS[2] lock   ARGV[1] the value of the lock of this restore
-- ARGV[2] the highest number of a closing that the partitions have
-- ARGV[3..] the fields and values that replace the hash: the field that shows that a restore runs, with the retractions
--         that the restored rules will have, and what must outlast the restore
--
-- Returns {"begun", number}   the number of the closing of topics that this restore makes: higher than all before
--         {"overtaken"}       the lock is not that of this restore: nothing was changed
--
-- Invariant: the hash exists at every moment, so no process creates another deployment. Two restores have
-- the same number only if the hash and the partitions of the earlier one were lost.
local call = redis.call
if call('GET', KEYS[2]) ~= ARGV[1] then
  return { 'overtaken' }
end
local highest = math.max(tonumber(call('HGET', KEYS[1], 'closing') or '0'), tonumber(ARGV[2]))
local closing = string.format('%.0f', highest + 1)
call('DEL', KEYS[1])
call('HSET', KEYS[1], 'closing', closing, unpack(ARGV, 3))
return { 'begun', closing }
