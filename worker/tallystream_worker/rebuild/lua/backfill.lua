#!lua
-- backfill: counts entries that no stream holds any more, once, in the order of a source that can be read again.
--
-- KEYS[1] mark   KEYS[2] dead stream   KEYS[3] ledger (hash)
-- ARGV[1] batch, msgpack: what rules.lua says   ARGV[2] where the mark must stand, "" for nowhere   ARGV[3] where it
-- stands then   ARGV[4..] parked entries, as in apply.lua
--
-- Returns {"applied"}, {"at", mark} where the mark stands elsewhere, or {"refused", metric, subject, ...}
--
-- Invariant: the mark moves in the call that adds the deltas, and in no other: the source is counted up to it.
--@include tallystream.storage rules/rules
local at = call('GET', KEYS[1]) or ''
if at ~= ARGV[2] then
  return { 'at', at }
end
local planned = plan(cmsgpack.unpack(ARGV[1]))
if #planned.refused > 0 then
  return { 'refused', unpack(planned.refused, 1, math.min(#planned.refused, CHUNK)) }
end
call('XLEN', KEYS[2])

call('SET', KEYS[1], ARGV[3])
local next_ = 4
while ARGV[next_] do
  local count = tonumber(ARGV[next_])
  call('XADD', KEYS[2], '*', unpack(ARGV, next_ + 1, next_ + count))
  next_ = next_ + count + 1
end
write(planned)
return { 'applied' }
