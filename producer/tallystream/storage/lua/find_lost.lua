#!lua
-- find_lost: returns which key a partition has lost, before a client trusts that a missing key never existed.
--
-- KEYS[1] stream
--
-- Returns {"whole"}         no sentinel is lost
--         {"counted"}       no sentinel is lost, and a worker has counted entries of the partition
--         {"damaged", key}  the partition has lost this key, see lib/sentinels.lua
--
-- Invariant: nothing is changed. "counted" proves that the deployment was stored: workers count nothing without it. An
-- append does not prove that, because producers may append just after the server was emptied.
local sentinels = require('tallystream.storage.lua.lib.sentinels')
local lost = sentinels.lost(KEYS[1])
if lost then
  return { 'damaged', lost }
end
local prefix = string.gsub(KEYS[1], 'stream$', '')
local live = string.match(redis.call('GET', prefix .. 'live') or '1', '^%d+')
local closed = redis.call('HGET', prefix .. 'seq', '!closed')
if live ~= '1' or (closed and closed ~= '') or redis.call('HEXISTS', prefix .. 'ledger', 'entries:settled') == 1 then
  return { 'counted' }
end
return { 'whole' }
