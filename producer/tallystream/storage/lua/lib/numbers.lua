-- numbers: whole numbers in Lua, where every number is a double.

-- 2^53 - 1, the largest whole number that a double holds exactly with all smaller ones.
local MAX = 9007199254740991
-- Stands for a stored value that is no number: beyond MAX, whatever delta is added to it.
local OUT_OF_RANGE = 2 * MAX + 2

-- Returns `n` as an argument for a command. Redis 7.2 and Valkey write a large number argument as 1e+15, so such a
-- number becomes its decimal digits; a small one stays a number, which is faster.
local function number_string(n)
  return (n < 1e6 and n > -1e6) and n or string.format('%.0f', n)
end

-- Raises an error unless each field of the hash `key` is absent or holds a whole number, which HINCRBY can add to.
local function check_whole(key, fields)
  for _, field in ipairs(fields) do
    local value = redis.call('HGET', key, field)
    if value and not string.match(value, '^%-?%d+$') then
      error({ err = 'ERR ' .. key .. ' field ' .. field .. ' is not a whole number' })
    end
  end
end

return { check_whole = check_whole, number_string = number_string, MAX = MAX, OUT_OF_RANGE = OUT_OF_RANGE }
