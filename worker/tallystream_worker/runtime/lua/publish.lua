#!lua
-- publish: stores the rules of the live generation, and records the change.
--
-- KEYS[1] meta (hash)   KEYS[2] changes of the rules (stream)
-- ARGV[1] number of the rules that the caller has read, "0" for none   ARGV[2] rules, in their published form
-- ARGV[3] who publishes them
-- ARGV[4] number above which the rules must be: at this number or below, equal rules are stored again with a new number
-- ARGV[5..] names of fields to set to 1: the marks of spread metrics
--
-- Returns {"published", number}   the rules are stored
--         {"unchanged", number}   these rules were stored already
--         {"moved", number}       another caller has stored rules with this number meanwhile; nothing was changed
--         {"gone"}                the hash describes no deployment: it was deleted, or a restore runs
--
-- Invariant: the call that stores rules also gives them a number and records them, so no change is missing in the
-- record. Rules that were made from the stored ones never replace others.
local rule_changes = require('tallystream.storage.lua.lib.rule_changes')
local call = redis.call
local meta, changes = KEYS[1], KEYS[2]

local refusal, stored, number, generation = rule_changes.read(meta, ARGV[1])
if refusal then
  return refusal
end
call('XLEN', changes) -- raises an error if the key has another type
for i = 5, #ARGV do
  call('HSET', meta, ARGV[i], 1)
end
if number and stored == ARGV[2] and tonumber(number) > tonumber(ARGV[4]) then
  return { 'unchanged', number }
end
return { 'published', rule_changes.store(meta, changes, ARGV[2], ARGV[3], generation, ARGV[4]) }
