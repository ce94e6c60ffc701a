#!lua
-- decide: one event, logged and counted in one call, with the verdict.
--
-- KEYS[1] stream   KEYS[2] sequences (hash; its field `!limit` is the most entries that the stream may have)   KEYS[3] ledger (hash)
-- ARGV[1] batch of this one event, msgpack, see rules.lua
-- ARGV[2] key of the event's total   ARGV[3..] fields and values of its stream entry
--
-- Returns {"decided", stream id, accepted 0|1, reason, total, used}
--         {"full", limit}    the stream has as many entries as it may: counting is behind; nothing was done
--         {"refused"}    the counters cannot take it; nothing was done
-- `used` is what was asked of the limit in the event's bucket, this event included; "" without a limit.
--
-- Invariant: the entry is in the stream and its effect in the counters, or neither is. It carries a mark by which
-- the worker acknowledges it without counting; a replay, which starts from nothing, counts it like any other.
--@include tallystream rules
local limit = call('HGET', KEYS[2], '!limit')
if limit and call('XLEN', KEYS[1]) >= tonumber(limit) then
  return { 'full', limit }
end
local batch = cmsgpack.unpack(ARGV[1])
local planned = plan(batch)
if #planned.refused > 0 then
  return { 'refused' }
end

local id = call('XADD', KEYS[1], '*', unpack(ARGV, 3))
write(planned)

local accepted, reason, used = 1, '', ''
if planned.duplicates > 0 then
  accepted, reason = 0, 'duplicate'
elseif planned.voted == false then
  accepted, reason = 0, 'once'
end
if #planned.used > 0 then
  used = format('%.0f', planned.used[1])
  if accepted == 1 and planned.used[1] > batch.rules[1].limit then
    accepted, reason = 0, 'limit'
  end
end
local total = call('GET', ARGV[2])
return { 'decided', id, accepted, reason, total or '', used }
