#!lua
-- begin_drop: records that a generation is being removed, so that it is never counted, switched to or continued again.
--
-- KEYS[1] meta (hash)   ARGV[1] generation   ARGV[2] the number of the command: see claim_turn.lua
--
-- Returns {"dropping"}    it is recorded; it may have been before
--         {"overtaken"}   a later command has begun: nothing was changed
--
-- Invariant: no key of a generation is removed before this record exists. The caller has checked, after it took its
-- turn, that no partition and no reader uses the generation: since then, no earlier command can have switched to it.
if redis.call('HGET', KEYS[1], 'turn') ~= ARGV[2] then
  return { 'overtaken' }
end
redis.call('HSET', KEYS[1], 'dropping@' .. ARGV[1], 1)
return { 'dropping' }
