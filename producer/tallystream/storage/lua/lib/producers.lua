-- producers: decides whether the record of a producer may have been removed from the sequences.
--
-- The reaper removes the records of producers that have not appended for long. It first writes their horizon, a stream
-- ID: each removed record named an entry before the horizon, and each record that names a later entry is still there.
-- A field of the sequences for each kind of producer has "<horizon> <newest mark>"; see reap_producers.lua.
local streams = require('tallystream.storage.lua.lib.streams')

-- Returns the field with the horizon for producers of this kind: those with a spool, and those that drew a name for one
-- run of their process (16 hexadecimal digits). Returns `nil` for other names: their records are never removed.
local function horizon_field(producer)
  if string.sub(producer, 1, 6) == 'spool:' then
    return '!reaped:spool'
  end
  if #producer == 16 and not string.find(producer, '[^0-9a-f]') then
    return '!reaped'
  end
end

-- Returns the horizon and the newest mark in the value of such a field; `false` stands for a missing field.
local function parse_horizon(value)
  if value then
    return string.match(value, '^(%S+) (%S+)$')
  end
  return '0-0', '0-0'
end

-- Returns true if a missing record of the producer may have been removed. `since` is a stream ID: all entries of the
-- producer have later IDs, except that its last confirmed entry may have exactly this one.
local function may_be_removed(sequences, producer, since)
  local field = horizon_field(producer)
  local value = field and redis.call('HGET', sequences, field)
  return value and streams.is_before(since, (parse_horizon(value)))
end

return { horizon_field = horizon_field, may_be_removed = may_be_removed, parse_horizon = parse_horizon }
