#!lua
-- reopen: lets a closed partition take entries and count them again, because the repartition failed or was given up.
--
-- KEYS[1] sequences (hash)   KEYS[2] live generation   ARGV[1] the number of the closing that failed: see close.lua
--
-- Returns {"reopened"}       the partition was closed
--         {"open"}           the partition was not closed
--         {"overtaken"}      a later closing has closed or reopened the partition: nothing was changed
--         {"damaged", key}   the partition has lost this key (see lib/sentinels.lua); nothing was changed
--
-- Invariant: the generation that was live when the partition was closed is the live one again. A process that was
-- paused does not reopen what another one has closed since.
local sentinels = require('tallystream.storage.lua.lib.sentinels')
local call = redis.call

if tonumber(call('HGET', KEYS[1], '!closing') or '0') > tonumber(ARGV[1]) then
  return { 'overtaken' }
end
local lost = sentinels.lost(KEYS[1])
if lost then
  return { 'damaged', lost }
end
local live = call('GET', KEYS[2])
local closed = call('HGET', KEYS[1], '!closed')
if live then
  call('SET', KEYS[2], (string.gsub(live, ' closed$', '')))
end
if not closed or closed == '' then
  call('HSET', KEYS[1], '!closing', ARGV[1]) -- the failed closing may continue, and must not close it
  return { 'open' }
end
call('HSET', KEYS[1], '!closed', '', '!closing', ARGV[1])
return { 'reopened' }
