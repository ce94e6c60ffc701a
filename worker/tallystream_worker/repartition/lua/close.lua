#!lua
-- close: nothing more is written to a partition or counted in it, since its log goes on in another one.
--
-- KEYS[1] sequences (hash)   KEYS[2] live generation   ARGV[1] the log in which it goes on
-- Returns 1, also where it was closed before.
--
-- Invariant: append.lua and ingest.lua refuse what is not in the stream yet, by `!closed`; apply.lua, decide.lua and
-- retry.lua because no generation is live. So the counters stay as they are, and nothing is in them that is not there.
local live = redis.call('GET', KEYS[2]) or '1'
redis.call('HSET', KEYS[1], '!closed', ARGV[1])
if not string.find(live, ' closed', 1, true) then
  redis.call('SET', KEYS[2], live .. ' closed')
end
return 1
