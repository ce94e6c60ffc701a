#!lua
-- end_drop: removes everything that the meta hash states about a generation, because its keys are removed.
--
-- KEYS[1] meta (hash)   ARGV[1] generation   ARGV[2] the number of the command: see claim_turn.lua
--
-- Returns {"dropped"}   the hash states nothing about the generation; it may not have before
--         {"overtaken"}  a later command has begun: nothing was changed
--
-- Invariant: what the hash states about other generations stays.
local call, generation = redis.call, ARGV[1]
if call('HGET', KEYS[1], 'turn') ~= ARGV[2] then
  return { 'overtaken' }
end
call('HDEL', KEYS[1], 'rules@' .. generation, 'revision@' .. generation, 'dropping@' .. generation)
if call('HGET', KEYS[1], 'building') == generation then
  call('HDEL', KEYS[1], 'building')
end
return { 'dropped' }
