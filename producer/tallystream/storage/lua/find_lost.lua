#!lua
-- find_lost: returns which key a partition has lost.
--
-- KEYS[1] stream
--
-- Returns {"whole"}         no sentinel is lost
--         {"counted"}       no sentinel is lost, and a worker has counted entries of the partition
--         {"new"}           the partition has no sentinel, and no worker has counted in its stream: it was never
--                           opened, or has lost all its keys
--         {"damaged", key}  the partition has lost this key, see lib/sentinels.lua
--
-- Invariant: nothing is changed. "counted" proves that the deployment was stored: workers count nothing without it. An
-- open partition does not prove that, because partitions are opened before the deployment is stored.
local sentinels = require('tallystream.storage.lua.lib.sentinels')
local lost = sentinels.lost(KEYS[1])
if lost then
  return sentinels.is_new(KEYS[1]) and { 'new' } or { 'damaged', lost }
end
local prefix = string.gsub(KEYS[1], 'stream$', '')
local live = string.match(redis.call('GET', prefix .. 'live'), '^%d+')
local closed = redis.call('HGET', prefix .. 'seq', '!closed')
if live ~= '1' or (closed and closed ~= '') or redis.call('HEXISTS', prefix .. 'ledger', 'entries:settled') == 1 then
  return { 'counted' }
end
return { 'whole' }
