#!lua
-- touch: writes a value of a partition again, so that a WAIT after it covers what the node executed before the call.
--
-- KEYS[1] sequences
--
-- Returns {"touched"}       the value was written
--         {"damaged", key}  the partition has lost this key, see lib/sentinels.lua; nothing was done
--
-- Invariant: no value changes. WAIT covers only writes of the same connection; the stream of replication is in order,
-- so a replica that has this write has every write of every connection before it.
local lost = require('tallystream.storage.lua.lib.sentinels').lost(KEYS[1])
if lost then
  return { 'damaged', lost }
end
redis.call('HSET', KEYS[1], '!begun', redis.call('HGET', KEYS[1], '!begun'))
return { 'touched' }
