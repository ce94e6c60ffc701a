#!lua
-- reap_producers: removes the records of producers that have not appended for long.
--
-- KEYS[1] sequences (hash: producer -> "<sequence> <stream ID>")   KEYS[2] stream
-- ARGV[1] cursor   ARGV[2] about how many fields one call reads
-- ARGV[3] most milliseconds that one call adds to the active time
-- ARGV[4] milliseconds of active time without an append after which a producer is silent
-- ARGV[5] the same, of a producer with a spool
--
-- Returns {"reaped", next cursor, producers removed}
--         {"damaged", key}   the partition has lost this key (see lib/sentinels.lua); nothing was changed
--
-- Silence is measured in active time: the time during which the server ran and workers made their passes. So neither an
-- outage nor a clock that jumps makes producers silent: a call adds at most ARGV[3]. From time to time a mark records
-- the active time and the last ID of the stream. The newest mark that is old enough is the horizon: a producer is
-- silent if its last entry is before it. Other fields of the sequences than producers:
--   !active         "<active milliseconds> <server's time at the last call>"
--   !marks:<kind>   "<active milliseconds> <stream ID> ...", oldest first, at most 32 marks
--   !reaped         "<horizon> <newest mark>" of producers without a spool; `!reaped:spool` of those with one
--
-- Invariant: a record is removed only if its entry is before the horizon, which never moves back. append.lua therefore
-- knows when a missing record may be a removed one. Records with other names, such as those of ingested files, are
-- never removed.
local chunks = require('tallystream.storage.lua.lib.chunks')
local clock = require('tallystream.storage.lua.lib.clock')
local producers = require('tallystream.storage.lua.lib.producers')
local sentinels = require('tallystream.storage.lua.lib.sentinels')
local streams = require('tallystream.storage.lua.lib.streams')
local call, sequences = redis.call, KEYS[1]

local MARKS = 30 -- a mark is made whenever this part of the silence has passed

-- Returns the active time in milliseconds, and the field's new value.
local function advance(value)
  local now = clock.milliseconds()
  local active, seen = string.match(value or '', '^(%d+) (%d+)$')
  local passed = math.max(0, math.min(now - (seen or now), tonumber(ARGV[3])))
  active = (active or 0) + passed
  return active, string.format('%.0f %.0f', active, now)
end

-- Returns the horizon of one kind of producer, and the new values of its fields `!marks:...` and `!reaped...`. If the
-- field with the horizon was deleted, the first mark is the horizon: marks are later than every horizon before them.
local function move_horizon(active, silence, last_id, stored_marks, stored)
  local first = not stored and string.match(stored_marks or '', '^%d+ (%d+%-%d+)')
  local horizon, newest = producers.parse_horizon(first and first .. ' ' .. first or stored)
  local marks, newest_at = {}, nil
  for at, id in string.gmatch(stored_marks or '', '(%d+) (%d+%-%d+)') do
    marks[#marks + 1] = { tonumber(at), id }
    newest_at = tonumber(at)
  end
  if not newest_at or active - newest_at >= silence / MARKS then
    marks[#marks + 1] = { active, last_id }
    newest = last_id
  end
  local kept = {}
  for _, mark in ipairs(marks) do
    if mark[1] > active - silence then
      kept[#kept + 1] = string.format('%.0f %s', mark[1], mark[2])
    elseif streams.is_before(horizon, mark[2]) then
      horizon = mark[2]
    end
  end
  if streams.is_before(newest, horizon) then
    newest = horizon -- the stream was deleted: a new producer must not begin before the horizon
  end
  return horizon, table.concat(kept, ' '), horizon .. ' ' .. newest
end

local lost = sentinels.lost(sequences)
if lost then
  return { 'damaged', lost }
end
local was_active, drawn_marks, drawn, spool_marks, spool =
  unpack(call('HMGET', sequences, '!active', '!marks:drawn', '!reaped', '!marks:spool', '!reaped:spool'))
local last_id = streams.last_id(KEYS[2])
last_id = last_id == '' and '0-0' or last_id
local active, new_active = advance(was_active)
local horizons = {}
horizons['!reaped'], drawn_marks, drawn = move_horizon(active, tonumber(ARGV[4]), last_id, drawn_marks, drawn)
horizons['!reaped:spool'], spool_marks, spool = move_horizon(active, tonumber(ARGV[5]), last_id, spool_marks, spool)

local cursor, found = unpack(call('HSCAN', sequences, ARGV[1], 'COUNT', ARGV[2]))
local old = {}
for i = 1, #found, 2 do
  local horizon = horizons[producers.horizon_field(found[i])]
  local id = string.match(found[i + 1], '^%d+ (%d+%-%d+)$')
  if horizon and id and streams.is_before(id, horizon) then
    old[#old + 1] = found[i]
  end
end
call('HSET', sequences, '!active', new_active, '!marks:drawn', drawn_marks, '!reaped', drawn)
call('HSET', sequences, '!marks:spool', spool_marks, '!reaped:spool', spool)
chunks.each(call, 'HDEL', sequences, old, 1)
return { 'reaped', cursor, #old }
