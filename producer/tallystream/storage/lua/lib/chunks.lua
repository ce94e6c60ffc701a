-- chunks: splits commands with many arguments, because Lua's unpack fails at about 8,000 of them.

local SIZE = 2000 -- keys, fields or members in one call

-- Returns the values of any number of fields of a hash, in the order of `fields`; `false` for an absent field.
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

-- Calls `run` (redis.call or redis.pcall) with the command, the key and at most 2 * SIZE items of `list[first..]` at a
-- time. The size is even: if pairs (field and value, score and member) begin at `first`, none of them is split.
local function each(run, command, key, list, first)
  for from = first, #list, 2 * SIZE do
    run(command, key, unpack(list, from, math.min(from + 2 * SIZE - 1, #list)))
  end
end

return { each = each, hash_values = hash_values, SIZE = SIZE }
