-- clock: reads the time of the server. No other module reads a clock, and no script takes a present time from a caller.

-- Returns the time by the server's clock, in whole milliseconds since 1970.
local function milliseconds()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Returns the time of a worker's last pass, and the time at which the clock had last advanced by more than a pass takes
-- (0 for never), both in milliseconds: trim.lua writes them to a field of the sequences. Returns nil before that.
local function last_pass(sequences)
  local last, leap = string.match(redis.call('HGET', sequences, '!clock') or '', '^(%d+) (%d+)$')
  return tonumber(last), tonumber(leap)
end

return { last_pass = last_pass, milliseconds = milliseconds }
