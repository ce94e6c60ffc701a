-- maps: flat replies. The server returns a hash, or what it knows about a stream, as { name, value, name, value, ... }.

-- Returns the values of a flat reply by name.
local function from_flat(flat)
  local map = {}
  for i = 1, #flat, 2 do
    map[flat[i]] = flat[i + 1]
  end
  return map
end

return { from_flat = from_flat }
