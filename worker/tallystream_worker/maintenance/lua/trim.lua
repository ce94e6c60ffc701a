#!lua
-- trim: removes the oldest counted entries of a stream, and publishes the length at which appends are refused.
--
-- KEYS[1] stream   KEYS[2] retention holds (hash: holder -> stream ID)
-- KEYS[3] the topic's ledger   KEYS[4] sequences (hash)
-- ARGV[1] group that counts   ARGV[2] milliseconds that an entry is kept, 0 for no limit
-- ARGV[3] bytes that the stream should have at most, 0 for no limit   ARGV[4] bytes at which appends stop, 0 for never
-- ARGV[5] entries that one call removes at most   ARGV[6] bytes that the dead stream may have, 0 for no limit
--
-- Writes two fields of the sequences, which readers show with the lengths: `!limit`, the number of entries at which
-- appends are refused, and `!dead`, which is ARGV[6]. A field without a limit is absent. A third, `!clock`, has the
-- server's time of this call, and the time at which the clock last stepped: it had advanced by more than ten minutes
-- between two calls, or was set back, or this was the first call. For an hour after that no entry is removed for its
-- age: a clock that is ahead for a moment must not cost the entries that a rebuild needs.
--
-- Returns {"trimmed", removed, entries, bytes, limit (entries, 0 for none), holder of the oldest entry}
--         {"damaged", key}   the partition has lost this key (see lib/sentinels.lua); nothing was changed
--
-- Invariant: no entry is removed that a group, whatever its name, has not read or not acknowledged, or that is after a
-- retention hold. If the counting group is missing, it is not known which entries were counted, so none is removed.
-- Trim by MINID only: MAXLEN would remove entries that are not counted.
local clock = require('tallystream.storage.lua.lib.clock')
local sentinels = require('tallystream.storage.lua.lib.sentinels')
local streams = require('tallystream.storage.lua.lib.streams')
local stream, holds, ledger, sequences = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local call = redis.call
local HOUR, LEAP = 3600000, 600000 -- milliseconds; workers call this script every few seconds

local lost = sentinels.lost(stream)
if lost then
  return { 'damaged', lost }
end

local mark, holder -- the smallest ID that must stay, and the group or retention hold that needs it
local function hold(id, name)
  if not streams.parse_id(id) then
    error({ err = 'ERR ' .. holds .. ' field ' .. name .. ' is not a stream ID' })
  end
  if not mark or streams.is_before(id, mark) then
    mark, holder = id, name
  end
end

local is_counting = false
for _, group in ipairs(streams.groups(stream)) do
  is_counting = is_counting or group.name == ARGV[1]
  hold(group['last-delivered-id'], 'group ' .. group.name)
  if group.pending > 0 then
    hold(call('XPENDING', stream, group.name)[2], 'group ' .. group.name)
  end
end
local held = call('HGETALL', holds)
for i = 1, #held, 2 do
  hold(held[i + 1], held[i])
end
call('HGET', ledger, 'entries:retired') -- a key of another type is an error here, before anything is written
call('HGET', sequences, '!limit')

-- Stores the server's time `now`; returns whether the clock has advanced steadily for an hour.
local function is_steady(now)
  local last, leap = clock.last_pass(sequences)
  if not last or now < last or now - last > LEAP then
    leap = now -- a clock that was set back may still be ahead
  end
  call('HSET', sequences, '!clock', string.format('%.0f %.0f', now, leap))
  return now - leap > HOUR
end

local entries, bytes = call('XLEN', stream), call('MEMORY', 'USAGE', stream, 'SAMPLES', 20)
local each = entries > 0 and bytes / entries or 0
local step, removed = tonumber(ARGV[5]), 0
if is_counting then
  local now = clock.milliseconds()
  if is_steady(now) and tonumber(ARGV[2]) > 0 then
    local oldest = now - ARGV[2]
    local by_age = streams.parse_id(mark) < oldest and mark or string.format('%.0f-0', math.max(0, oldest))
    removed = call('XTRIM', stream, 'MINID', '~', by_age, 'LIMIT', step)
  end
  local excess = tonumber(ARGV[3]) > 0 and math.ceil((bytes - removed * each - ARGV[3]) / math.max(each, 1)) or 0
  if excess > 0 and removed < step then
    removed = removed + call('XTRIM', stream, 'MINID', '~', mark, 'LIMIT', math.min(excess, step - removed))
  end
  if removed > 0 then
    call('HINCRBY', ledger, 'entries:retired', removed)
  end
end

if ARGV[6] == '0' then
  call('HDEL', sequences, '!dead')
else
  call('HSET', sequences, '!dead', ARGV[6])
end
local limit, backlog = 0, tonumber(ARGV[4])
if backlog == 0 then
  call('HDEL', sequences, '!limit')
elseif entries > 0 then
  limit = math.max(1, math.floor(backlog / each))
  call('HSET', sequences, '!limit', limit)
end
return { 'trimmed', removed, entries - removed, bytes, limit, holder or '' }
