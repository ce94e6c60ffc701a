#!lua
-- propose: reserves a number for the generation to build, unless one is being built already.
--
-- KEYS[1] meta (hash)   ARGV[1] rules, in their published form
--
-- Returns {"building", generation}   this generation is being built by these rules
--         {"other", generation}      this generation is being built by other rules
--         {"kept", generation}       this old generation is still kept
--         {"dropping", generation}   this generation is being removed: the removal has not ended
--         {"gone"}                   the hash describes no deployment: it was deleted, or a restore runs
--
-- Invariant: no number is used twice, because decided entries keep the number of their generation in the stream. The
-- rules get a number too, `revision@<n>`: that of the live rules if they are equal, else a new one.
local rule_changes = require('tallystream.storage.lua.lib.rule_changes')
local call = redis.call
if call('HEXISTS', KEYS[1], 'layout') == 0 then
  return { 'gone' }
end
local building = call('HGET', KEYS[1], 'building')
if building and call('HEXISTS', KEYS[1], 'dropping@' .. building) == 1 then
  return { 'dropping', building }
end
if building then
  return { call('HGET', KEYS[1], 'rules@' .. building) == ARGV[1] and 'building' or 'other', building }
end
for _, name in ipairs(call('HKEYS', KEYS[1])) do
  local kept = string.match(name, '^rules@(%d+)$')
  if kept then
    return { 'kept', kept }
  end
end
local present = call('HGET', KEYS[1], 'generation') or '1'
local newest = math.max(tonumber(call('HGET', KEYS[1], 'newest') or '1'), tonumber(present)) + 1
local number = string.format('%.0f', newest)
local rules, revision = unpack(call('HMGET', KEYS[1], 'rules', 'revision'))
if rules ~= ARGV[1] or not revision then
  revision = rule_changes.next_number(KEYS[1], '0')
  call('HSET', KEYS[1], 'newest-revision', revision)
end
call('HSET', KEYS[1], 'generation', present, 'newest', number, 'building', number)
call('HSET', KEYS[1], 'rules@' .. number, ARGV[1], 'revision@' .. number, revision)
return { 'building', number }
