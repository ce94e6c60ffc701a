#!lua
-- decide: one event, logged and counted in one call, with the verdict.
--
-- KEYS[1] stream   KEYS[2] live generation   KEYS[3] the generation's ledger (hash)   KEYS[4] the log's ledger (hash)
-- KEYS[5] sequences (hash; its field `!limit` is the most entries that the stream may have)
-- ARGV[1] batch of this one event, msgpack, see rules.lua   ARGV[2] generation that it is for
-- ARGV[3] key of the event's total   ARGV[4..] fields and values of its stream entry
--
-- Returns {"decided", stream id, accepted 0|1, reason, total, used}
--         {"full", limit}    the stream has as many entries as it may: counting is behind; nothing was done
--         {"refused"}    the counters cannot take it; nothing was done
--         {"moved"}      another generation is live by now; nothing was done
-- `used` is what was asked of the limit in the event's bucket, this event included; "" without a limit.
--
-- Invariant: the entry is in the stream and its effect in the live generation's counters, or neither is. It carries
-- that generation as a mark, by which its worker acknowledges the entry without counting it; another generation counts
-- it like any other.
--@include tallystream.storage rules/rules
if (call('GET', KEYS[2]) or '1') ~= ARGV[2] then
  return { 'moved' }
end
local limit = call('HGET', KEYS[5], '!limit')
if limit and call('XLEN', KEYS[1]) >= tonumber(limit) then
  return { 'full', limit }
end
local batch = cmsgpack.unpack(ARGV[1])
local planned = plan(batch)
if #planned.refused > 0 then
  return { 'refused' }
end

for _, field in ipairs({ 'appended', 'entries:gated' }) do
  if not string.match(call('HGET', KEYS[4], field) or '0', '^%-?%d+$') then
    error({ err = 'ERR ' .. KEYS[4] .. ' field ' .. field .. ' is not a whole number' })
  end
end
local id = call('XADD', KEYS[1], '*', unpack(ARGV, 4))
call('HINCRBY', KEYS[4], 'appended', 1)
call('HINCRBY', KEYS[4], 'entries:gated', 1)
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
local total = call('GET', ARGV[3])
return { 'decided', id, accepted, reason, total or '', used }
