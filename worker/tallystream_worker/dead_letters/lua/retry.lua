#!lua
-- retry: counts a dead letter, or adds it to the dead letters again, once.
--
-- KEYS[1] dead stream   KEYS[2] dead stream   KEYS[3] ledger (hash)   KEYS[4] live generation
-- ARGV[1] batch, msgpack: { ids = { ID in the dead stream }, and the fields that rules/plan.lua lists; its ledger takes
--         the events out of `dead` and adds them to the fields of what became of them }
-- ARGV[2] generation that must be the live one
-- ARGV[3..] what is a dead letter again, as dead_letters/lua/add.lua reads it
--
-- Returns {"applied"}
--         {"stale"}                            it is no dead letter any more: it was retried or dropped
--         {"switched"}                         another generation is live now
--         {"rejected", metric, subject, ...}   these counters cannot take their delta
--
-- Invariant: an entry leaves the dead stream in the call that counts its events or adds them again, and in no other.
local add_dead_letters = require('tallystream_worker.dead_letters.lua.add')
local generations = require('tallystream.storage.lua.lib.generations')
local plan = require('tallystream.storage.lua.rules.plan')
local rejection = require('tallystream.storage.lua.rules.rejection')
local write = require('tallystream.storage.lua.rules.write')
local call = redis.call

if generations.live(KEYS[4]) ~= ARGV[2] then
  return { 'switched' }
end
local batch = cmsgpack.unpack(ARGV[1])
for i = 1, #batch.ids do
  if #call('XRANGE', KEYS[1], batch.ids[i], batch.ids[i]) == 0 then
    return { 'stale' }
  end
end
local planned = plan(batch, KEYS[3])
if #planned.rejected > 0 then
  return rejection(planned)
end

-- From here on nothing fails.
add_dead_letters(KEYS[2], 3)
call('XDEL', KEYS[1], unpack(batch.ids))
write(planned)
return { 'applied' }
