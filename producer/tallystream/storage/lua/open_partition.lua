#!lua
-- open_partition: lets a new partition take entries and count them, unless it was opened before.
--
-- KEYS[1] sequences (hash)   ARGV[1] the value of the live generation: see `live_mark`
--
-- Returns {"opened"}         the partition was opened by this call or before; it may have been closed since
--         {"damaged", key}   the partition has lost this key (see lib/sentinels.lua); nothing was changed
--
-- Invariant: without this call, every script refuses to count in the partition or to append to it. A partition that has
-- lost all its keys looks like a new one. So call this only if nothing can be lost: see `open_partitions`.
local sentinels = require('tallystream.storage.lua.lib.sentinels')
local name = sentinels.lost(KEYS[1])
if name then
  if not sentinels.is_new(KEYS[1]) then
    return { 'damaged', name }
  end
  sentinels.open(KEYS[1], ARGV[1])
end
return { 'opened' }
