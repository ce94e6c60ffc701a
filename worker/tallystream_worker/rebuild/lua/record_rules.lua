#!lua
-- record_rules: writes the lost record of the changes of the rules again.
--
-- KEYS[1] meta (hash)   KEYS[2] changes of the rules (stream)
-- ARGV[1] number of the live rules that the caller has read   ARGV[2] who records the live rules
-- ARGV[3] earlier changes that are known, in the order of their IDs, as JSON: [[ID, [field, value, ...]], ...]
--
-- Returns {"recorded"}         the record has the known changes and, as the last one, the live rules
--         {"present"}          the record exists; nothing was changed
--         {"moved", number}    other rules with this number are live now; nothing was changed
--         {"gone"}             the hash describes no deployment: it was deleted, or a restore runs
--
-- Invariant: the rules and their number do not change. No call removes a recorded change.
local rule_changes = require('tallystream.storage.lua.lib.rule_changes')
local call = redis.call
local meta, changes = KEYS[1], KEYS[2]

local rules, number, generation, layout = unpack(call('HMGET', meta, 'rules', 'revision', 'generation', 'layout'))
if not layout then
  return { 'gone' }
end
if call('EXISTS', changes) == 1 then
  return { 'present' }
end
if not rules or number ~= ARGV[1] then
  return { 'moved', number or '0' }
end
local last
for _, change in ipairs(cjson.decode(ARGV[3])) do
  call('XADD', changes, change[1], unpack(change[2]))
  last = change[2]
end
local is_recorded = false
for i = 1, #(last or {}), 2 do
  is_recorded = is_recorded or (last[i] == 'number' and last[i + 1] == number)
end
if not is_recorded then
  rule_changes.record(meta, changes, number, ARGV[2], generation or '1', rules)
end
return { 'recorded' }
