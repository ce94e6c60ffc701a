-- numbers: whole numbers in Lua. Every number of Lua is a double.

local chunks = require('tallystream.storage.lua.lib.chunks')

-- 2^53 - 1: a double can represent this whole number and all smaller ones exactly.
local MAX = 9007199254740991
-- Replaces a stored value that is not a number. It stays larger than MAX, whatever delta is added to it.
local OUT_OF_RANGE = 2 * MAX + 2

-- Returns the whole number `n` as an argument for a command. Redis 7.2 and Valkey write a large number argument as
-- 1e+15, so a large number becomes a text of decimal digits. A small one stays a number, which is faster.
local function number_string(n)
  return (n < 1e6 and n > -1e6) and n or string.format('%.0f', n)
end

-- Raises an error if one of the fields of the hash `key` exists and is not a whole number: HINCRBY would fail on it.
-- Returns the values of the fields. There are at most a few hundred of them.
local function check_whole(key, fields)
  local values = chunks.hash_values(key, fields)
  for i, value in ipairs(values) do
    if value and not string.match(value, '^%-?%d+$') then
      error({ err = 'ERR ' .. key .. ' field ' .. fields[i] .. ' is not a whole number' })
    end
  end
  return values
end

return { check_whole = check_whole, number_string = number_string, MAX = MAX, OUT_OF_RANGE = OUT_OF_RANGE }
