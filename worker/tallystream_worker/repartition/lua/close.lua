#!lua
-- close: stops appending to a partition and counting in it, because its topic goes on in another one.
--
-- KEYS[1] sequences (hash)   KEYS[2] live generation   ARGV[1] the topic in which it goes on
--
-- Returns {"closed"}   also if it was closed before
--
-- Invariant: append.lua and ingest.lua refuse what is not in the stream yet, by `!closed`; apply.lua, decide.lua and
-- retry.lua because no generation is live. So the counters stay as they are, and contain only what is in the stream.
local generations = require('tallystream.storage.lua.lib.generations')
local call = redis.call

local live = generations.live(KEYS[2])
call('HSET', KEYS[1], '!closed', ARGV[1])
if not string.find(live, ' closed', 1, true) then
  call('SET', KEYS[2], live .. ' closed')
end
return { 'closed' }
