-- generations: which version of the counters of a partition is the live one.

-- Returns the live generation. Its key does not exist before the first switch. ' closed' follows the number when the
-- partition's stream goes on in other partitions: then no generation is live, because no number equals this text.
local function live(key)
  return redis.call('GET', key) or '1'
end

return { live = live }
