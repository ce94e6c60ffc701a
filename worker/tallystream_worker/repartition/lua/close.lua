#!lua
-- close: stops appending to a partition and counting in it, because another topic replaces its topic.
--
-- KEYS[1] sequences (hash)   KEYS[2] live generation   ARGV[1] the topic that replaces this one
-- ARGV[2] the number of this closing: higher than that of every closing that began earlier
--
-- Returns {"closed"}         the partition is closed; it may have been closed before
--         {"overtaken"}      a later closing has closed or reopened the partition: nothing was changed
--         {"damaged", key}   the partition has lost this key (see lib/sentinels.lua); nothing was changed
--
-- Invariant: append.lua and ingest.lua refuse new entries because of `!closed`; apply.lua, decide.lua and retry.lua
-- refuse because no generation is live. So the counters do not change, and contain only entries of the stream. Both
-- keys stay when the topic is dropped, so the scripts never count there again: without them, a dropped topic would look
-- like a new one without events.
local generations = require('tallystream.storage.lua.lib.generations')
local sentinels = require('tallystream.storage.lua.lib.sentinels')
local call = redis.call

if tonumber(call('HGET', KEYS[1], '!closing') or '0') > tonumber(ARGV[2]) then
  return { 'overtaken' }
end
local lost = sentinels.lost(KEYS[1])
if lost then
  return { 'damaged', lost }
end
local live = generations.live(KEYS[2])
call('HSET', KEYS[1], '!closed', ARGV[1], '!closing', ARGV[2])
if not string.find(live, ' closed', 1, true) then
  call('SET', KEYS[2], live .. ' closed')
end
return { 'closed' }
