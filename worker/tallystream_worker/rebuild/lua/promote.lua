#!lua
-- promote: makes another generation the live one in the meta hash, which readers follow.
--
-- KEYS[1] meta (hash)   KEYS[2] changes of the rules (stream)   ARGV[1] generation   ARGV[2] who makes it live
-- ARGV[3] the number of the command: see claim_turn.lua
--
-- Returns {"promoted"}    the generation is live; it may have been live before
--         {"overtaken"}   a later command has begun: nothing was changed
--
-- Invariant: `rules` and `revision` are those of `generation`; those of each other existing generation are in
-- `rules@<n>` and `revision@<n>`. If the rules differ, this call records the change.
local rule_changes = require('tallystream.storage.lua.lib.rule_changes')
local call = redis.call
local meta, changes, wanted = KEYS[1], KEYS[2], ARGV[1]

local present, before, number, turn = unpack(call('HMGET', meta, 'generation', 'rules', 'revision', 'turn'))
if turn ~= ARGV[3] then
  return { 'overtaken' }
end
present = present or '1'
if present ~= wanted then
  local rules, its_number = unpack(call('HMGET', meta, 'rules@' .. wanted, 'revision@' .. wanted))
  if not rules then
    error({ err = 'ERR ' .. meta .. ' has no field rules@' .. wanted })
  end
  call('XLEN', changes) -- raises an error if the key has another type
  number, its_number = number or '0', its_number or '0'
  call('HSET', meta, 'generation', wanted, 'rules', rules, 'revision', its_number)
  call('HSET', meta, 'rules@' .. present, before, 'revision@' .. present, number)
  call('HDEL', meta, 'rules@' .. wanted, 'revision@' .. wanted)
  if rules ~= before then
    rule_changes.record(meta, changes, its_number, ARGV[2], wanted, rules)
  end
end
if call('HGET', meta, 'building') == wanted then
  call('HDEL', meta, 'building')
end
return { 'promoted' }
