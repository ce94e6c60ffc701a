-- generations: reads which generation of a partition's counters is live.

-- Returns the live generation as a text. If the partition is closed, ' closed' follows the number, and ' restoring'
-- during a restore: then no generation is live, because no number equals this text. The key of a closed partition stays
-- when its topic is dropped.
-- In the first topic, '1' if the key does not exist, because no switch has happened yet. A later topic has the key from
-- its beginning. Without it nothing is live: the topic was given up, or the server was emptied; then the result is ''.
local function live(key)
  return redis.call('GET', key) or (string.find(key, '}:l%d+:live$') and '' or '1')
end

return { live = live }
