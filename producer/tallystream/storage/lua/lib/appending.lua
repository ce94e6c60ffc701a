-- appending: what every script does that appends entries to the stream of a partition.
--
-- Fields of the sequences that begin with `!` (no producer's name does): `!limit`, the most entries that the stream may
-- have, and `!closed`, the number of the topic in which a closed stream goes on.

local call = redis.call
local ENTRIES = 'entries:gated' -- the ledger's field that counts the entries that a script appended

-- The fields that `add_to_ledger` adds to: check them before the first write.
local LEDGER_FIELDS = { 'appended', ENTRIES }

-- Adds events and entries that were appended to the ledger.
local function add_to_ledger(ledger, events, entries)
  call('HINCRBY', ledger, 'appended', events)
  call('HINCRBY', ledger, ENTRIES, entries)
end

-- Tells whether the stream has as many entries as it may; `limit` is the field `!limit`, `false` for no limit.
local function is_full(stream, limit)
  return limit and call('XLEN', stream) >= tonumber(limit)
end

-- Returns the script's reply if nothing may be appended, else `nil`. Raises an error if the ledger is no hash.
local function refusal(stream, ledger, limit, closed)
  if closed then
    return { 'closed', closed }
  end
  if is_full(stream, limit) then
    return { 'full', limit }
  end
  call('HGET', ledger, 'appended') -- a key of another type is an error here, before anything is written
end

-- Appends one entry of a producer, stores its sequence number and adds its events to the ledger; returns its ID.
local function append(stream, sequences, ledger, version, producer, sequence, events, payload)
  local id = call('XADD', stream, '*', 'v', version, 'p', producer, 'q', sequence, 'n', events, 'b', payload)
  call('HSET', sequences, producer, sequence .. ' ' .. id)
  add_to_ledger(ledger, events, 1)
  return id
end

return {
  add_to_ledger = add_to_ledger,
  append = append,
  is_full = is_full,
  refusal = refusal,
  LEDGER_FIELDS = LEDGER_FIELDS,
}
