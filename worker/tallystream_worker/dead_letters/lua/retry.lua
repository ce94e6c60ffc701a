#!lua
-- retry: counts the events of a dead letter, adds those that still cannot be counted as dead letters, and removes it.
--
-- KEYS[1], KEYS[2] dead stream, the same   KEYS[3] ledger (hash)   KEYS[4] live generation
-- KEYS[5] stream
-- ARGV[1] batch, msgpack: { ids = { ID in the dead stream }, and the fields that rules/plan.lua lists; its ledger takes
--         the events out of `dead` and adds them to the fields of their outcomes }
-- ARGV[2] generation that must be the live one, then a space and the number of the rules of the batch, if they have one
-- ARGV[3] stream ID of the original entry: a later reset of a subject takes away what its events add
-- ARGV[4..] the new dead letters, as dead_letters/lua/add.lua reads them
--
-- Returns {"applied"}
--         {"stale"}                            the dead letter does not exist any more: it was retried or dropped
--         {"switched"}                         another generation is live now, or none: see lib/generations.lua
--         {"outdated", number}                 rules with this higher number count the partition now
--         {"reset"}                            the subject of an event with an ID or a limit was reset since
--         {"forgotten"}                        the state of the period of an event was removed
--         {"rejected", metric, subject, reason, ...}   these counters cannot take their delta,
--                                              see rules/rejection.lua
--         {"damaged", key [, type]}            the partition has lost this key (see lib/sentinels.lua)
--
-- Invariant: a retried entry leaves the dead stream in the call that counts its events or adds them again. This call
-- also changes `entries:retried` in the ledger, so that the next snapshot reads every counter: no entry of the stream
-- shows which ones a retry has changed.
local add_dead_letters = require('tallystream_worker.dead_letters.lua.add')
local clock = require('tallystream.storage.lua.lib.clock')
local generations = require('tallystream.storage.lua.lib.generations')
local plan = require('tallystream.storage.lua.rules.plan')
local rejection = require('tallystream.storage.lua.rules.rejection')
local remove = require('tallystream_worker.dead_letters.lua.remove')
local write = require('tallystream.storage.lua.rules.write')
local call = redis.call

local lost = require('tallystream.storage.lua.lib.sentinels').lost(KEYS[4])
if lost then
  return { 'damaged', lost }
end
local refusal, change = generations.refusal(KEYS[4], KEYS[5], ARGV[2])
if refusal then
  return refusal
end
local batch = cmsgpack.unpack(ARGV[1])
for i = 1, #batch.ids do
  if #call('XRANGE', KEYS[1], batch.ids[i], batch.ids[i]) == 0 then
    return { 'stale' }
  end
end
if call('EXISTS', (string.gsub(KEYS[3], 'ledger$', 'resets'))) == 1 then
  if not require('tallystream.storage.lua.rules.resets').take_away(batch, KEYS[3], ARGV[3]) then
    return { 'reset' }
  end
end
local planned = plan(batch, KEYS[3])
if planned.lost then
  return { 'damaged', planned.lost, planned.lost_type }
end
if planned.forgotten > 0 then
  return { 'forgotten' }
end
if #planned.rejected > 0 then
  return rejection(planned)
end

-- Nothing after this line can fail.
generations.follow(change)
add_dead_letters(KEYS[2], 4)
for i = 1, #batch.ids do
  remove(KEYS[1], batch.ids[i])
end
write(planned)
call('HSET', KEYS[3], 'entries:retried', string.format('%.0f', clock.microseconds()))
return { 'applied' }
