#!lua
-- open_partition: lets a new partition take entries and count them, unless it was opened before.
--
-- KEYS[1] sequences (hash)   ARGV[1] the value of the live generation: see `live_mark`
--
-- Returns {"opened"}         the partition was opened by this call or before; it may have been closed since
--         {"damaged", key}   the partition has lost this key (see lib/sentinels.lua); nothing was changed
--
-- Invariant: without this call, every script refuses to count in the partition or to append to it. A partition that has
-- lost all its keys looks like a new one. So call this only if nothing can be lost: see `open_partitions`. The group of
-- the first generation exists before anything is counted: decide.lua counts without a worker, and ensure_group.lua
-- creates no group after something was counted.
local sentinels = require('tallystream.storage.lua.lib.sentinels')
local streams = require('tallystream.storage.lua.lib.streams')
local name = sentinels.lost(KEYS[1])
if name then
  if not sentinels.is_new(KEYS[1]) then
    return { 'damaged', name }
  end
  sentinels.open(KEYS[1], ARGV[1])
  local stream = string.gsub(KEYS[1], 'seq$', 'stream')
  if redis.call('EXISTS', stream) == 0 or not streams.group(stream, sentinels.GROUP) then
    redis.call('XGROUP', 'CREATE', stream, sentinels.GROUP, '0', 'MKSTREAM')
  end
end
return { 'opened' }
