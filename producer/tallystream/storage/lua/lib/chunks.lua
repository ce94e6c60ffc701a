-- chunks: commands with any number of arguments. Lua's unpack fails at about 8,000.

local SIZE = 2000 -- keys, fields or members in one call

-- Returns the values of any number of fields of a hash, in their order; `false` for an absent field.
local function hash_values(key, fields)
  local values = {}
  for first = 1, #fields, SIZE do
    local part = redis.call('HMGET', key, unpack(fields, first, math.min(first + SIZE - 1, #fields)))
    for i = 1, #part do
      values[first + i - 1] = part[i]
    end
  end
  return values
end

-- Calls `run` (redis.call or redis.pcall) with the command, the key and `list[first..]`, 2 * SIZE items at a time at
-- most: so a pair (field and value, score and member) is never split if it begins at `first`.
local function each(run, command, key, list, first)
  for from = first, #list, 2 * SIZE do
    run(command, key, unpack(list, from, math.min(from + 2 * SIZE - 1, #list)))
  end
end

return { each = each, hash_values = hash_values, SIZE = SIZE }
