#!lua
-- reset: holds appends back until every entry of the partition is counted, then appends a reset and counts it.
--
-- KEYS[1] stream   KEYS[2] live generation   KEYS[3] the generation's ledger (hash)   KEYS[4] the topic's ledger (hash)
-- KEYS[5] sequences (hash)
-- ARGV[1] generation that must be the live one, then a space and the number of its rules   ARGV[2] its group
-- ARGV[3] "" to only hold appends back; else the millisecond of the ID of the entry, or "0" for the present
-- ARGV[4] batch of the resets, msgpack, see rules/plan.lua; this script adds their stream ID
-- ARGV[5..] fields and values of the stream entry
--
-- Returns {"reset", total, ...}   the totals before, one for each reset of the batch
--         {"ready", millisecond}  nothing waits to be counted, and the IDs of all entries are before this time
--         {"waiting", ID}         this entry is not counted yet: call again
--         {"passed"}              an entry has a later ID than the stated one: nothing was done
--         {"rejected", metric, subject, reason, ...}   these counters are not whole numbers, or a key has another type,
--                                 see rules/rejection.lua: nothing was done
--         {"closed", topic}       the partition is closed: nothing was done
--         {"switched"}            another generation is live now: nothing was done
--         {"outdated", number}    rules with this higher number count the partition now: nothing was done
--         {"none"}                the partition has no stream: there is nothing to reset
--         {"damaged", key [, type]}   the partition has lost this key (see lib/sentinels.lua): nothing was done
-- Raises NOGROUP if the group does not exist.
--
-- After the replies "ready", "waiting" and "reset", appends are held back for a second, or until `!hold` is removed.
-- Decisions and plain entries are not: each is counted before the reset, or comes after it.
--
-- Invariant: the generation has counted every entry before the reset and no later one when it counts the reset, so the
-- reset takes away exactly what these entries have added. Every other generation counts the reset like any other entry,
-- in the order of the log.
local appending = require('tallystream.storage.lua.lib.appending')
local clock = require('tallystream.storage.lua.lib.clock')
local generations = require('tallystream.storage.lua.lib.generations')
local maps = require('tallystream.storage.lua.lib.maps')
local numbers = require('tallystream.storage.lua.lib.numbers')
local plan = require('tallystream.storage.lua.rules.plan')
local rejection = require('tallystream.storage.lua.rules.rejection')
local sentinels = require('tallystream.storage.lua.lib.sentinels')
local streams = require('tallystream.storage.lua.lib.streams')
local write = require('tallystream.storage.lua.rules.write')
local call, format = redis.call, string.format
local stream, sequences, generation = KEYS[1], KEYS[5], string.match(ARGV[1], '^%d+')
local MOST, PAGE = 1000, 10 -- entries that one call looks at, and that it reads at a time

-- Returns whether the live generation has counted an entry in the call that appended it.
local function is_counted(entry)
  local fields = maps.from_flat(entry[2])
  return fields.v and fields.d == generation
end

-- Returns the ID of an entry that is not counted, `nil` if there is none. If so many entries wait that not all of them
-- are looked at, one of them is returned.
local function uncounted(group)
  for n, pending in ipairs(call('XPENDING', stream, ARGV[2], '-', '+', MOST)) do
    local entry = call('XRANGE', stream, pending[1], pending[1])[1] -- `nil` if it was trimmed
    if n == MOST or (entry and not is_counted(entry)) then
      return pending[1]
    end
  end
  local last = group['last-delivered-id']
  for _ = 1, MOST / PAGE do
    local page = call('XRANGE', stream, '(' .. last, '+', 'COUNT', PAGE)
    for _, entry in ipairs(page) do
      last = entry[1]
      if not is_counted(entry) then
        return last
      end
    end
    if #page < PAGE then
      return nil
    end
  end
  return last
end

local closed = call('HGET', sequences, '!closed')
if closed and closed ~= '' then
  return { 'closed', closed }
end
local lost = sentinels.lost(stream)
if lost then
  return { 'damaged', lost }
end
local refusal, change = generations.refusal(KEYS[2], stream, ARGV[1])
if refusal then
  return refusal
elseif call('EXISTS', stream) == 0 then
  if tonumber(call('HGET', KEYS[4], sentinels.GATED) or '0') > 0 then
    return { 'damaged', stream }
  end
  return { 'none' }
end
local group = streams.existing_group(stream, ARGV[2])
local now = clock.milliseconds()
local last = streams.parse_id(streams.last_id(stream))
appending.hold(sequences, now)
local waiting = uncounted(group)
if waiting then
  return { 'waiting', waiting }
elseif ARGV[3] == '' then
  return { 'ready', format('%.0f', math.max(now, last + 1)) }
end
local at = tonumber(ARGV[3])
if at == 0 then
  at = math.max(now, last + 1)
elseif at <= last then
  return { 'passed' }
end
local id = format('%.0f-0', at)
local batch = cmsgpack.unpack(ARGV[4])
for _, reset in ipairs(batch.resets) do
  reset[3] = id
end
local planned = plan(batch, KEYS[3])
if planned.lost then
  return { 'damaged', planned.lost, planned.lost_type }
end
if #planned.rejected > 0 then
  return rejection(planned)
end
numbers.check_whole(KEYS[4], appending.LEDGER_FIELDS)

-- From here on nothing fails.
generations.follow(change)
if at > now then
  call('XADD', stream, id, 't', format('%.0f', now), unpack(ARGV, 5))
  appending.add_stated(sequences, id, now)
else
  call('XADD', stream, id, unpack(ARGV, 5))
end
appending.add_to_ledger(KEYS[4], 0, 1)
write(planned)
return { 'reset', unpack(planned.taken) }
