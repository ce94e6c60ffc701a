#!lua
-- open: lets a partition of a later topic take entries and count them, unless it was opened or closed before.
--
-- KEYS[1] sequences (hash)   ARGV[1] the value of the live generation: see `live_mark`
--
-- Returns {"opened"}         the partition was opened by this call or before; it may have been closed since
--         {"damaged", key}   the partition has lost this key (see lib/sentinels.lua); nothing was changed
--
-- Invariant: without this call, every script refuses to count in the topic or to append to it. So an emptied server, on
-- which the first topic is live again, refuses processes that still know the later one.
local sentinels = require('tallystream.storage.lua.lib.sentinels')
local name, is_open = sentinels.lost(KEYS[1])
if name then
  return { 'damaged', name }
end
if not is_open then
  sentinels.open(KEYS[1], ARGV[1])
  redis.call('HSET', KEYS[1], '!closed', '')
end
return { 'opened' }
