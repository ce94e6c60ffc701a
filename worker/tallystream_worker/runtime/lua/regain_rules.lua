#!lua
-- regain_rules: stores rules that were made with changes that the server has lost, and records these changes again.
--
-- KEYS[1] meta (hash)   KEYS[2] changes of the rules (stream)
-- ARGV[1] number of the live rules that the caller has read   ARGV[2] rules, in their published form
-- ARGV[3] who stores them
-- ARGV[4] number above which the rules must be: at this number or below, equal rules are stored again with a new number
-- ARGV[5] the lost changes, as JSON: [[ID, [field, value, ...]], ...]
-- ARGV[6..] names of fields to set to 1: the marks of spread metrics
--
-- Returns {"regained", number}   the lost changes are recorded, and the rules are stored with this number
--         {"moved", number}      another caller has stored rules with this number meanwhile; nothing was changed
--         {"gone"}               the hash describes no deployment: it was deleted, or a restore runs
--
-- Invariant: one call stores the rules and records the lost changes, so a loss is mended as a whole or stays visible.
-- Recorded changes stay (see `lib/rule_changes.lua` for their greatest number), in the order of their IDs.
local rule_changes = require('tallystream.storage.lua.lib.rule_changes')
local call = redis.call
local meta, changes = KEYS[1], KEYS[2]

local function is_before(one, other)
  local ms, sequence = one[1]:match('^(%d+)-(%d+)$')
  local other_ms, other_sequence = other[1]:match('^(%d+)-(%d+)$')
  if ms ~= other_ms then
    return tonumber(ms) < tonumber(other_ms)
  end
  return tonumber(sequence) < tonumber(other_sequence)
end

local refusal, stored, number, generation = rule_changes.read(meta, ARGV[1])
if refusal then
  return refusal
end
local recorded, is_recorded = call('XRANGE', changes, '-', '+'), {}
for _, change in ipairs(recorded) do
  is_recorded[change[1]] = true
end
for _, change in ipairs(cjson.decode(ARGV[5])) do
  if not is_recorded[change[1]] then
    recorded[#recorded + 1] = change
  end
end
table.sort(recorded, is_before)
call('DEL', changes)
for _, change in ipairs(recorded) do
  call('XADD', changes, change[1], unpack(change[2]))
end
for i = 6, #ARGV do
  call('HSET', meta, ARGV[i], 1)
end
if not number or stored ~= ARGV[2] or tonumber(number) <= tonumber(ARGV[4]) then
  number = rule_changes.store(meta, changes, ARGV[2], ARGV[3], generation, ARGV[4])
end
return { 'regained', number }
