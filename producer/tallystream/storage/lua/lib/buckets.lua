-- buckets: decides whether an event is still added to a bucket that has closed.
--
-- A bucket of a window, a leaderboard or uniques closes when its retention has passed. An event that the server
-- receives later is not added to it, and no read uses it. Its key is removed by rules/forget_periods.lua when all
-- entries that arrived in time are counted. If such an entry is counted long after the bucket closed, as in a rebuild,
-- its event may be left out of the bucket, because no read uses it.
--
-- If the clock was ahead for a moment, a bucket that seems closed may be open after it. So while the clock has not
-- advanced steadily for an hour, no event is left out. trim.lua stores how the clock advances in the sequences.
local clock = require('tallystream.storage.lua.lib.clock')

local HOUR = 3600000 -- milliseconds

-- Returns true if the clock has advanced steadily for an hour, or no pass has stored its time. `now` is its time.
local function is_steady(ledger_key, now)
  local of_generation = string.gsub(ledger_key, 'ledger$', '')
  local of_topic = string.gsub(of_generation, ':g%-?%d+:$', ':')
  local last, leap = clock.last_pass(of_topic .. 'seq')
  return not last or (now >= last and now - last <= HOUR and now - leap > HOUR)
end

-- Returns true if no event is added any more to a bucket that closes at millisecond `closes` (0: never).
local function is_over(planned, closes)
  if closes == 0 or closes + HOUR > planned.now then
    return false
  end
  if planned.is_steady == nil then
    planned.is_steady = is_steady(planned.ledger_key, planned.now)
  end
  return planned.is_steady
end

return { is_over = is_over }
