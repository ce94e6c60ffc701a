-- streams: stream IDs, and what the server knows about a stream and its consumer groups.
local maps = require('tallystream.storage.lua.lib.maps')

-- Returns the two numbers of a stream ID, `nil` if it is none; the second one may be missing and is then 0.
local function parse_id(id)
  local milliseconds, sequence = string.match(id, '^(%d+)%-?(%d*)$')
  return tonumber(milliseconds), tonumber(sequence) or 0
end

-- Tells whether the stream ID `a` is smaller than `b`.
local function is_before(a, b)
  local a_milliseconds, a_sequence = parse_id(a)
  local b_milliseconds, b_sequence = parse_id(b)
  return a_milliseconds < b_milliseconds or (a_milliseconds == b_milliseconds and a_sequence < b_sequence)
end

-- Returns the fields of XINFO STREAM by name. Raises an error if there is no stream.
local function info(stream)
  return maps.from_flat(redis.call('XINFO', 'STREAM', stream))
end

-- Returns the largest ID that the stream has ever had, also after it was emptied; '' if there is no stream.
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

-- Returns one consumer group, `nil` if the stream has none of that name.
local function group(stream, name)
  for _, each in ipairs(groups(stream)) do
    if each.name == name then
      return each
    end
  end
end

-- Returns one consumer group. Raises NOGROUP if the stream has none of that name.
local function existing_group(stream, name)
  return group(stream, name) or error({ err = 'NOGROUP ' .. stream .. ' has no consumer group ' .. name })
end

return {
  existing_group = existing_group,
  group = group,
  groups = groups,
  info = info,
  is_before = is_before,
  last_id = last_id,
  parse_id = parse_id,
}
