#!lua
-- decide: appends one event and counts it in one call, and returns whether it was accepted.
--
-- KEYS[1] stream   KEYS[2] live generation   KEYS[3] the generation's ledger (hash)   KEYS[4] the topic's ledger (hash)
-- KEYS[5] sequences (hash; its field `!limit` is the most entries that the stream may have)
-- ARGV[1] batch of this one event, msgpack, see rules/plan.lua
-- ARGV[2] generation that the batch is for, then a space and the number of its rules
-- ARGV[3] key of the event's total   ARGV[4] the event's time, milliseconds since 1970
-- ARGV[5] milliseconds that an event may be late, "" for any   ARGV[6] milliseconds that it may be ahead
-- ARGV[7..] fields and values of its stream entry
--
-- Returns {"decided", stream ID, accepted 0|1, reason, total, used}
--         {"full", limit}    the stream already has `limit` entries or more, because counting lags; nothing was done
--         {"late"}           by the server's clock the event is later than it may be, or the state of its period,
--                            which would decide it, was removed; nothing was done
--         {"ahead"}          by the server's clock the event is further ahead than it may be; nothing was done
--         {"rejected", reason}   a counter cannot take the event, see rules/rejection.lua; nothing was done
--         {"switched"}       another generation is live now; nothing was done
--         {"outdated", number}   rules with this higher number count the partition now; nothing was done
--         {"damaged", key [, type]}   the partition has lost this key (see lib/sentinels.lua); nothing was done
-- `reason` is "" if the event was accepted, else "duplicate", "once" or "limit".
-- `total` is "" if there is no key, and "?" if a part of the total may be in the sketch, or if the event does not
-- change the total and its key has another type.
-- `used` is the number of events that arrived in the bucket of the limit, this event included; "" without a limit, or
-- if the event is a duplicate that does not change this bucket.
--
-- Invariant: either the entry is in the stream and the live generation has counted it, or neither. The fields of the
-- entry name that generation, so its worker acknowledges the entry without counting it. Every other generation counts
-- it like any other entry: so an event that the fold would find late or too far ahead must not be decided.
local appending = require('tallystream.storage.lua.lib.appending')
local clock = require('tallystream.storage.lua.lib.clock')
local generations = require('tallystream.storage.lua.lib.generations')
local numbers = require('tallystream.storage.lua.lib.numbers')
local plan = require('tallystream.storage.lua.rules.plan')
local streams = require('tallystream.storage.lua.lib.streams')
local write = require('tallystream.storage.lua.rules.write')
local call = redis.call

local refusal, change = generations.refusal(KEYS[2], KEYS[1], ARGV[2])
if refusal then
  return refusal
end
local limit, begun = unpack(call('HMGET', KEYS[5], '!limit', '!begun'))
local lost = not begun and require('tallystream.storage.lua.lib.sentinels').lost(KEYS[1])
if lost then
  return { 'damaged', lost }
end
if appending.is_full(KEYS[1], limit) then
  return { 'full', limit }
end
local now, at, may_be_late = clock.milliseconds(), tonumber(ARGV[4]), tonumber(ARGV[5])
if may_be_late and now - at > may_be_late then
  return { 'late' }
end
local earliest = at - ARGV[6] -- the earliest time of an ID that the event may have
-- Like the fold, measure this from the entry's ID, which is later than `now` if the clock was set back.
if earliest > now and earliest > (streams.parse_id(streams.last_id(KEYS[1])) or 0) then
  return { 'ahead' }
end
local batch = cmsgpack.unpack(ARGV[1])
local changes = plan(batch, KEYS[3], now)
if changes.lost then
  return { 'damaged', changes.lost, changes.lost_type }
end
if #changes.rejected > 0 then
  return { 'rejected', changes.rejected[3] }
end
if changes.forgotten > 0 then
  return { 'late' }
end
local _, gated = unpack(numbers.check_whole(KEYS[4], appending.LEDGER_FIELDS))
lost = not gated and require('tallystream.storage.lua.lib.sentinels').lost(KEYS[1])
if not lost and appending.is_deleted(KEYS[1], gated) then
  lost = KEYS[1]
end
if lost then
  return { 'damaged', lost }
end

-- From here on nothing fails.
generations.follow(change)
local id = appending.add_entry(KEYS[1], KEYS[5], now, unpack(ARGV, 7))
appending.add_to_ledger(KEYS[4], 1, 1)
if changes.unplaced then
  require('tallystream.storage.lua.rules.votes').place(changes, id)
end
write(changes)

local accepted, reason, used = 1, '', ''
if changes.duplicates > 0 then
  accepted, reason = 0, 'duplicate'
elseif changes.voted == false then
  accepted, reason = 0, 'once'
end
-- An event with an ID may replace a copy in the bucket of another period, which then is in `changes.used` too.
local arrived = next(changes.used) and changes.used[batch.rules[1].limits .. batch.labels[1][1]]
if arrived then
  used = string.format('%.0f', arrived)
  if accepted == 1 and arrived > batch.rules[1].limit then
    accepted, reason = 0, 'limit'
  end
end
local total = changes.is_split and '?' or redis.pcall('GET', ARGV[3]) or ''
return { 'decided', id, accepted, reason, type(total) == 'table' and '?' or total, used }
