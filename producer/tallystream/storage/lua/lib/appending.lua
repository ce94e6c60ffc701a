-- appending: functions for every script that appends entries to the stream of a partition.
--
-- Five fields of the sequences are not producers (no producer's ID begins with `!`). `!limit` is the most entries that
-- the stream may have. `!closed` is the topic to append to instead if the stream is closed; it is '' or missing if the
-- stream is open. It stays when the topic is dropped. `!hold` is the time until which a reset holds appends back, in
-- milliseconds. `!stated` is about entries that state an earlier time than that of their ID: see `add_stated`. `!begun`
-- is a sentinel: see sentinels.lua.
local clock = require('tallystream.storage.lua.lib.clock')

local call = redis.call
local ENTRIES = 'entries:gated' -- field of the ledger: entries that scripts appended
local HOLD = 1000 -- milliseconds for which one call of a reset holds appends back

-- The fields that `add_to_ledger` adds to. A script must check them before its first write.
local LEDGER_FIELDS = { 'appended', ENTRIES }

-- Adds numbers of appended events and entries to the ledger.
local function add_to_ledger(ledger, events, entries)
  call('HINCRBY', ledger, 'appended', events)
  call('HINCRBY', ledger, ENTRIES, entries)
end

-- Returns true if the stream has `limit` entries or more. `limit` is the field `!limit`; `false` means no limit.
local function is_full(stream, limit)
  return limit and call('XLEN', stream) >= tonumber(limit)
end

-- Returns whether a reset holds appends back until the millisecond `held`. If the reset crashes, the hold
-- ends by itself, even if the clock was set back meanwhile.
local function is_held(held)
  local left = tonumber(held) - clock.milliseconds()
  return left > 0 and left <= HOLD
end

-- Holds appends back for a moment.
local function hold(sequences, now)
  call('HSET', sequences, '!hold', string.format('%.0f', now + HOLD))
end

-- Returns whether the stream was deleted: scripts have appended `gated` entries, but there is no stream. Trimming
-- leaves an empty one. XADD would create another stream, in which the lost entries have no place any more: their
-- producers send them again only in order.
local function is_deleted(stream, gated)
  return gated ~= '0' and call('EXISTS', stream) == 0
end

-- Returns the reply "closed", "held", "full" or "damaged" if nothing may be appended, else `nil`. Raises an error if
-- the ledger exists and is not a hash. `limit`, `closed`, `held` and `begun` are the values of their fields, `false` if
-- there are none.
local function refusal(stream, ledger, limit, closed, held, begun)
  if closed and closed ~= '' then
    return { 'closed', closed }
  end
  if held and is_held(held) then
    return { 'held' }
  end
  if is_full(stream, limit) then
    return { 'full', limit }
  end
  -- A ledger of another type is an error here, before anything is written.
  local gated = call('HGET', ledger, ENTRIES)
  if not (gated and begun) then
    local lost = require('tallystream.storage.lua.lib.sentinels').lost(stream)
    return lost and { 'damaged', lost }
  end
  return is_deleted(stream, gated) and { 'damaged', stream } or nil
end

-- Returns the two values of the field `!stated`, see `add_stated`; nil if no entry has stated an earlier time.
local function stated(sequences)
  local last, earliest = string.match(call('HGET', sequences, '!stated') or '', '^(%S+) (%d+)$')
  return last, tonumber(earliest)
end

-- Records an entry that states the time `received` (milliseconds) at which it was received, earlier than its ID: the
-- field `!stated` has "<ID of the last such entry> <earliest time that one of them states>". So while one of them is
-- not counted, it is known how early an entry after the oldest uncounted one may have been received.
local function add_stated(sequences, id, received)
  local _, earliest = stated(sequences)
  call('HSET', sequences, '!stated', string.format('%s %.0f', id, math.min(received, earliest or received)))
end

-- Appends an entry with these fields and values at the server's time `now` (milliseconds since 1970), and returns its
-- stream ID. The ID has this time, unless the stream has a later ID, because the clock was set back: IDs never go back.
-- Then the entry gets the next ID, and states the time in the field `t`, by which its lateness is measured.
local function add_entry(stream, sequences, now, ...)
  local time = string.format('%.0f', now)
  local id = redis.pcall('XADD', stream, time .. '-*', ...)
  if type(id) == 'table' then -- the error of an ID that is too small; any other error is raised by the next line
    id = call('XADD', stream, '*', 't', time, ...)
    add_stated(sequences, id, now)
  end
  return id
end

-- Appends one entry of a producer, stores its sequence, adds the entry to the ledger, and returns its stream ID.
local function append(stream, sequences, ledger, version, producer, sequence, events, payload)
  -- stylua: ignore
  local id = add_entry(stream, sequences, clock.milliseconds(),
    'v', version, 'p', producer, 'q', sequence, 'n', events, 'b', payload)
  call('HSET', sequences, producer, sequence .. ' ' .. id)
  add_to_ledger(ledger, events, 1)
  return id
end

return {
  add_entry = add_entry,
  add_stated = add_stated,
  add_to_ledger = add_to_ledger,
  append = append,
  hold = hold,
  is_deleted = is_deleted,
  is_full = is_full,
  refusal = refusal,
  stated = stated,
  LEDGER_FIELDS = LEDGER_FIELDS,
}
