-- generations: reads which generation of a partition's counters is live.

-- Returns the live generation as a text; '1' if the key does not exist, because no switch has happened yet. If the
-- partition is closed, ' closed' follows the number: then no generation is live, because no number equals this text.
local function live(key)
  return redis.call('GET', key) or '1'
end

return { live = live }
