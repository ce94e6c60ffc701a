-- maps: flat replies. The server returns hashes and facts about streams as { name, value, name, value, ... }.

-- Returns a table of the values of a flat reply, by name.
local function from_flat(flat)
  local map = {}
  for i = 1, #flat, 2 do
    map[flat[i]] = flat[i + 1]
  end
  return map
end

return { from_flat = from_flat }
