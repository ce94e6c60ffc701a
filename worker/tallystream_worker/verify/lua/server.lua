#!lua
-- server: reads the facts about a partition's server that limit what can be proved.
--
-- KEYS[1] stream
--
-- Returns {"server", maxmemory-policy, maxmemory in bytes (0 for no limit), evicted keys since the server started,
--          1 if its append-only file is on, else 0, second since 1970 of its last save, its run ID}
--
-- Invariant: nothing is changed.
local call, match = redis.call, string.match
local memory, stats = call('INFO', 'memory'), call('INFO', 'stats')
local persistence, server = call('INFO', 'persistence'), call('INFO', 'server')
return {
  'server',
  match(memory, 'maxmemory_policy:([%w-]+)') or '',
  match(memory, '\nmaxmemory:(%d+)') or '0',
  match(stats, 'evicted_keys:(%d+)') or '0',
  match(persistence, 'aof_enabled:(%d+)') or '0',
  match(persistence, 'rdb_last_save_time:(%d+)') or '0',
  match(server, 'run_id:(%w+)') or '',
}
