-- clock: the server's time.

-- Returns whole milliseconds since 1970, by the server's clock.
local function milliseconds()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

return { milliseconds = milliseconds }
