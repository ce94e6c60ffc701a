-- clock: reads the time of the server. No other module reads a clock, and no script takes a present time from a caller.
local HOUR = 3600000 -- milliseconds

-- Returns the time by the server's clock, in whole milliseconds since 1970.
local function milliseconds()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Returns the time by the server's clock, in microseconds since 1970.
local function microseconds()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- Returns the time of a worker's last pass, and the time at which the clock had last stepped, both in milliseconds:
-- trim.lua writes them to a field of the sequences. Returns nil before that.
local function last_pass(sequences)
  local last, leap = string.match(redis.call('HGET', sequences, '!clock') or '', '^(%d+) (%d+)$')
  return tonumber(last), tonumber(leap)
end

-- Returns whether the clock, which shows `now`, has advanced steadily for an hour; nil if no pass has stored its time.
-- If it has not, it may be ahead for a moment.
local function is_steady(sequences, now)
  local last, leap = last_pass(sequences)
  return last and now >= last and now - last <= HOUR and now - leap > HOUR
end

return { is_steady = is_steady, last_pass = last_pass, microseconds = microseconds, milliseconds = milliseconds }
