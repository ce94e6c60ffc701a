#!lua
-- apply: turns a folded batch into counts, once.
--
-- KEYS[1] stream   KEYS[2] dead stream   KEYS[3] ledger (hash)   KEYS[4] live generation
-- ARGV[1] group    ARGV[2] batch, msgpack: { ids = { entry id, ... }, and what rules.lua says }
-- ARGV[3] generation that must be the live one, or "" whichever is
-- ARGV[4..] parked entries, each as: how many arguments follow, then the fields and values of its dead entry
--
-- Returns {"applied"}
--         {"stale", id, ...}                   not all ids are pending any more; these still are
--         {"moved"}                            another generation is live by now
--         {"refused", metric, subject, ...}    these counters cannot take their delta
-- and raises NOGROUP where the stream or the group is gone: never to be taken for "already done".
--
-- Invariant: an entry is acknowledged in the call that adds its deltas or parks its bytes, and in no other.
-- Lua has no rollback, so everything that can fail is tried before the first write: the gate, every counter,
-- the type of every key. `#!lua` makes the server refuse the whole call when it is out of memory, read-only
-- or cannot write its log. A crash cannot come between the writes: the server runs the call as one.
--@include tallystream.storage rules/rules
local stream, dead = KEYS[1], KEYS[2]
local group = ARGV[1]
if ARGV[3] ~= '' and (call('GET', KEYS[4]) or '1') ~= ARGV[3] then
  return { 'moved' }
end
local batch = cmsgpack.unpack(ARGV[2])
local ids = batch.ids

-- The gate holds for every id: XACK's total could not tell which of them counted.
local pending = {}
for i = 1, #ids do
  if #call('XPENDING', stream, group, ids[i], ids[i], 1) == 1 then
    pending[#pending + 1] = ids[i]
  end
end
if #pending < #ids then
  return { 'stale', unpack(pending) }
end

local planned = plan(batch)
if #planned.refused > 0 then
  return { 'refused', unpack(planned.refused, 1, math.min(#planned.refused, CHUNK)) } -- the next try finds the rest
end
call('XLEN', dead)

-- From here on nothing fails.
call('XACK', stream, group, unpack(ids))
local at = 4
while ARGV[at] do
  local count = tonumber(ARGV[at])
  call('XADD', dead, '*', unpack(ARGV, at + 1, at + count))
  at = at + count + 1
end
write(planned)
return { 'applied' }
