#!lua
-- close_partition: stops counting in a partition, because a restore replaces its counters.
--
-- KEYS[1] stream   KEYS[2] live generation   ARGV[1] name of the first generation's consumer group; the others append
--         '-' and their number
--
-- Returns {"closed"}   the partition is closed; it may have been closed before
--
-- Invariant: apply.lua, decide.lua and retry.lua change nothing, because no generation is live. No worker reads an
-- entry, because every group that counts is gone: a read that waits fails at once. Entries are appended as before. A
-- partition without keys (the server was emptied) is opened, so that producers can append to it meanwhile.
local sentinels = require('tallystream.storage.lua.lib.sentinels')
local streams = require('tallystream.storage.lua.lib.streams')
local call = redis.call

if sentinels.is_new(KEYS[1]) then
  sentinels.open(KEYS[1], '1 restoring')
end
if call('EXISTS', KEYS[1]) == 1 then
  for _, group in ipairs(streams.groups(KEYS[1])) do
    if group.name == ARGV[1] or string.sub(group.name, 1, #ARGV[1] + 1) == ARGV[1] .. '-' then
      call('XGROUP', 'DESTROY', KEYS[1], group.name)
    end
  end
end
call('SET', KEYS[2], '1 restoring')
return { 'closed' }
