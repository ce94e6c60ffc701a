#!lua
-- remove: removes the group of a generation, and some of its keys, in one partition, unless a later command has begun.
--
-- KEYS[1] sequences (hash)   KEYS[2] stream   KEYS[3] the generation's ledger (hash)   KEYS[4..] the keys to remove
-- ARGV[1] the number of the command: see claim_turn.lua   ARGV[2] the generation's group
-- ARGV[3..] fields of the ledger to remove
--
-- Returns {"removed", number}   the number of keys that existed
--         {"overtaken"}   a later command has taken the partition, a restore has closed it, or a failover has taken
--                         back that this command has taken it: nothing was changed
--
-- Invariant: a removal that was paused removes nothing after a later command has begun, or a restore: a restore makes
-- the first generation live again, under its number. A partition without sequences has no live counters.
local call = redis.call
if call('EXISTS', KEYS[1]) == 1 and call('HGET', KEYS[1], '!turn') ~= ARGV[1] then
  return { 'overtaken' }
end
if call('EXISTS', KEYS[2]) == 1 then
  call('XGROUP', 'DESTROY', KEYS[2], ARGV[2])
end
if #ARGV > 2 then
  call('HDEL', KEYS[3], unpack(ARGV, 3))
end
return { 'removed', #KEYS > 3 and call('UNLINK', unpack(KEYS, 4)) or 0 }
