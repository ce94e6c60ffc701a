#!lua
-- eviction: reads whether a partition's server may evict keys, and how many it has evicted.
--
-- KEYS[1] stream
--
-- Returns {"eviction", maxmemory-policy, maxmemory in bytes (0 for no limit), evicted keys since the server started}
--
-- Invariant: nothing is changed.
local call, match = redis.call, string.match
local memory, stats = call('INFO', 'memory'), call('INFO', 'stats')
return {
  'eviction',
  match(memory, 'maxmemory_policy:([%w-]+)') or '',
  match(memory, '\nmaxmemory:(%d+)') or '0',
  match(stats, 'evicted_keys:(%d+)') or '0',
}
