#!lua
-- retry: counts a parked entry, or parks it again, once.
--
-- KEYS[1] dead stream   KEYS[2] dead stream   KEYS[3] ledger (hash)   KEYS[4] live generation
-- ARGV[1] batch, msgpack: { ids = { ID in the dead stream }, and what rules.lua says; its ledger takes the events out of
--         `dead` and puts them where they go }
-- ARGV[2] generation that must be the live one
-- ARGV[3..] what is parked again, each as: how many arguments follow, then the fields and values of its dead entry
--
-- Returns {"applied"}
--         {"stale"}                           it is not parked any more: somebody else has retried or dropped it
--         {"moved"}                           another generation is live by now
--         {"refused", metric, subject, ...}   these counters cannot take their delta
--
-- Invariant: an entry leaves the dead stream in the call that counts its events or parks them anew, and in no other.
--@include tallystream.storage rules/rules
if (call('GET', KEYS[4]) or '1') ~= ARGV[2] then
  return { 'moved' }
end
local batch = cmsgpack.unpack(ARGV[1])
for i = 1, #batch.ids do
  if #call('XRANGE', KEYS[1], batch.ids[i], batch.ids[i]) == 0 then
    return { 'stale' }
  end
end
local planned = plan(batch)
if #planned.refused > 0 then
  return { 'refused', unpack(planned.refused, 1, math.min(#planned.refused, CHUNK)) }
end

-- From here on nothing fails.
local at = 3
while ARGV[at] do
  local count = tonumber(ARGV[at])
  call('XADD', KEYS[2], '*', unpack(ARGV, at + 1, at + count))
  at = at + count + 1
end
call('XDEL', KEYS[1], unpack(batch.ids))
write(planned)
return { 'applied' }
