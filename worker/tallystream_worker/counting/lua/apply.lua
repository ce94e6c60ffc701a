#!lua
-- apply: turns a folded batch into counts, once.
--
-- KEYS[1] stream   KEYS[2] dead stream   KEYS[3] ledger (hash)   KEYS[4] live generation
-- ARGV[1] group    ARGV[2] batch, msgpack: { ids = { entry ID, ... }, and the fields that rules/plan.lua lists }
-- ARGV[3] generation that must be the live one, or "" for any
-- ARGV[4..] dead letters, as dead_letters/lua/add.lua reads them
--
-- Returns {"applied"}
--         {"stale", ID, ...}                   some IDs are no longer pending; these still are
--         {"switched"}                         another generation is live now
--         {"rejected", metric, subject, ...}   these counters cannot take their delta
-- Raises NOGROUP if the stream or the group is gone: never to be taken for "already done".
--
-- Invariant: an entry is acknowledged in the call that adds its deltas or its dead letter, and in no other.
-- Lua has no rollback, so everything that can fail is tried before the first write: the check of the IDs, every
-- counter, the type of every key. `#!lua` makes the server refuse the whole call when it is out of memory, read-only
-- or cannot write its log. A crash cannot come between the writes: the server runs the call as one.
local generations = require('tallystream.storage.lua.lib.generations')
local plan = require('tallystream.storage.lua.rules.plan')
local write = require('tallystream.storage.lua.rules.write')
local call = redis.call

local stream, dead = KEYS[1], KEYS[2]
local group = ARGV[1]
if ARGV[3] ~= '' and generations.live(KEYS[4]) ~= ARGV[3] then
  return { 'switched' }
end
local batch = cmsgpack.unpack(ARGV[2])
local ids = batch.ids

-- Each ID is checked: XACK returns a total, which could not tell which of them it acknowledged.
local pending = {}
for i = 1, #ids do
  if #call('XPENDING', stream, group, ids[i], ids[i], 1) == 1 then
    pending[#pending + 1] = ids[i]
  end
end
if #pending < #ids then
  return { 'stale', unpack(pending) }
end

local planned = plan(batch, KEYS[3])
if #planned.rejected > 0 then
  return require('tallystream.storage.lua.rules.rejection')(planned)
end
call('XLEN', dead)

-- From here on nothing fails.
call('XACK', stream, group, unpack(ids))
if ARGV[4] then
  require('tallystream_worker.dead_letters.lua.add')(dead, 4)
end
write(planned)
return { 'applied' }
