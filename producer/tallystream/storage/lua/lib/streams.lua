-- streams: reads stream IDs, and facts about a stream and its consumer groups.
local maps = require('tallystream.storage.lua.lib.maps')

-- Returns the milliseconds and the sequence of a stream ID as two numbers. A missing sequence is 0; if the text is not
-- a stream ID, the first result is `nil`.
local function parse_id(id)
  local milliseconds, sequence = string.match(id, '^(%d+)%-?(%d*)$')
  return tonumber(milliseconds), tonumber(sequence) or 0
end

-- Returns true if the stream ID `a` is smaller than `b`.
local function is_before(a, b)
  local a_milliseconds, a_sequence = parse_id(a)
  local b_milliseconds, b_sequence = parse_id(b)
  return a_milliseconds < b_milliseconds or (a_milliseconds == b_milliseconds and a_sequence < b_sequence)
end

-- Returns the fields of XINFO STREAM by name. Raises an error if the stream does not exist.
local function info(stream)
  return maps.from_flat(redis.call('XINFO', 'STREAM', stream))
end

-- Returns the largest ID that the stream has ever had, even if it is empty now; '' if the stream does not exist.
local function last_id(stream)
  if redis.call('EXISTS', stream) == 0 then
    return ''
  end
  return info(stream)['last-generated-id']
end

-- Returns a list of the stream's consumer groups, each as the fields of XINFO GROUPS by name.
local function groups(stream)
  local found = redis.call('XINFO', 'GROUPS', stream)
  for i, flat in ipairs(found) do
    found[i] = maps.from_flat(flat)
  end
  return found
end

-- Returns the consumer group `name` (its fields by name), or `nil` if the stream has no such group.
local function group(stream, name)
  for _, each in ipairs(groups(stream)) do
    if each.name == name then
      return each
    end
  end
end

-- Returns the consumer group `name` (its fields by name). Raises NOGROUP if the stream has no such group.
local function existing_group(stream, name)
  return group(stream, name) or error({ err = 'NOGROUP ' .. stream .. ' has no consumer group ' .. name })
end

-- Returns the millisecond at which the server received an entry: by its ID, or by its field `t` if the clock was set
-- back, or by its field `q` if it is a copy.
local function received(id, fields)
  local at = parse_id(id)
  at = math.min(at, tonumber(fields.t) or at)
  return fields.p == 'copy' and math.min(at, tonumber(fields.q) or at) or at
end

-- Gives the next entry of the stream a larger ID than `id`. A stream that does not exist is created, without entries.
local function skip(stream, id)
  if redis.call('EXISTS', stream) == 0 then
    redis.call('XGROUP', 'CREATE', stream, 'skip', '0', 'MKSTREAM')
    redis.call('XGROUP', 'DESTROY', stream, 'skip')
  end
  if is_before(last_id(stream), id) then
    redis.call('XSETID', stream, id)
  end
end

return {
  existing_group = existing_group,
  group = group,
  groups = groups,
  info = info,
  is_before = is_before,
  last_id = last_id,
  parse_id = parse_id,
  received = received,
  skip = skip,
}
