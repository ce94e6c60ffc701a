-- clock: reads the time of the server. No other module reads a clock, and no script takes a present time from a caller.

-- Returns the time by the server's clock, in whole milliseconds since 1970.
local function milliseconds()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

return { milliseconds = milliseconds }
