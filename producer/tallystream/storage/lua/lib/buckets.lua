-- buckets: decides whether an event is still added to a bucket that has closed.
--
-- A bucket of a window, a leaderboard or uniques closes when its retention has passed. An event that the server
-- receives later is not added to it, and no read uses it. Its key is removed by rules/forget_periods.lua when all
-- entries that arrived in time are counted. If such an entry is counted long after the bucket closed, as in a rebuild,
-- its event may be left out of the bucket, because no read uses it. forget_periods.lua then records the bucket as if it
-- was removed: if it is open after all, because the clock is set back or `retention` is raised, reads state it as
-- missing.
--
-- If the clock was ahead for a moment, a bucket that seems closed may be open after it. So while the clock has not
-- advanced steadily for an hour, no event is left out. trim.lua stores how the clock advances in the sequences.
local clock = require('tallystream.storage.lua.lib.clock')

local HOUR = 3600000 -- milliseconds

-- Returns the key of the sequences of the topic, for the ledger of one of its generations.
local function sequences_of(ledger_key)
  local of_generation = string.gsub(ledger_key, 'ledger$', '')
  return (string.gsub(of_generation, ':g%-?%d+:$', ':')) .. 'seq'
end

-- Returns true if no event is added any more to the bucket `name`, which closes at millisecond `closes` (0: never), and
-- records that events are left out of it. `name` is its key, or the prefix of its keys.
local function leave_out(planned, name, closes)
  if closes == 0 or closes + HOUR > planned.now then
    return false
  end
  if planned.is_steady == nil then
    planned.is_steady = clock.is_steady(sequences_of(planned.ledger_key), planned.now) == true
  end
  planned.left_out[name] = planned.is_steady
  return planned.is_steady
end

return { leave_out = leave_out }
