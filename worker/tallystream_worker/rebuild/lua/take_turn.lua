#!lua
-- take_turn: makes a partition refuse the steps of every command that began before this one.
--
-- KEYS[1] sequences (hash)   ARGV[1] the number of the command: see claim_turn.lua
--
-- Returns {"taken"}
--         {"overtaken"}   a later command has taken the partition: nothing was changed
--         {"absent"}      the partition has lost its sequences: nothing was changed, and no command switches it
--
-- Invariant: the number only rises. A step checks that its own number is stored, in the call that changes something.
local call = redis.call
if call('EXISTS', KEYS[1]) == 0 then
  return { 'absent' }
end
if tonumber(call('HGET', KEYS[1], '!turn') or '0') > tonumber(ARGV[1]) then
  return { 'overtaken' }
end
call('HSET', KEYS[1], '!turn', ARGV[1])
return { 'taken' }
