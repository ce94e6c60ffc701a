#!lua
-- close_partition: stops counting in a partition, because a restore replaces its counters.
--
-- KEYS[1] stream   KEYS[2] live generation   KEYS[3] sequences (hash)
-- ARGV[1] name of the first generation's consumer group; the others append '-' and their number
-- ARGV[2] the number of the closing of this restore: see begin_restore.lua
-- ARGV[3] the value of the live generation while this restore may write
-- ARGV[4] the last ID that the snapshot or the archive knows; "" if there is no snapshot
--
-- Returns {"closed"}      the partition is closed; it may have been closed before
--         {"overtaken"}   a later closing has changed the partition: nothing was changed
--
-- Invariant: apply.lua, decide.lua and retry.lua change nothing, because no generation is live. No worker reads an
-- entry, because every group that counts is gone: a read that waits fails at once. Entries are appended as before, but
-- with later IDs than the snapshot and the archive know: the restored stream gets the known entries first, in the order
-- of their IDs. A partition without keys (the server was emptied) is opened, so that producers can append to it
-- meanwhile. A stream that was deleted is not created: producers append again when the restored one is there, and send
-- again what it lacks. From now on, no earlier restore changes the partition (see fenced.lua), and no earlier command
-- that changes generations (see take_turn.lua).
local appending = require('tallystream.storage.lua.lib.appending')
local closings = require('tallystream_worker.snapshot.lua.closings')
local sentinels = require('tallystream.storage.lua.lib.sentinels')
local streams = require('tallystream.storage.lua.lib.streams')
local call = redis.call

if closings.is_overtaken(KEYS[3], KEYS[2], ARGV[2], ARGV[3]) then
  return { 'overtaken' }
end
if sentinels.is_new(KEYS[1]) then
  sentinels.open(KEYS[1], ARGV[3])
end
if call('EXISTS', KEYS[1]) == 1 then
  for _, group in ipairs(streams.groups(KEYS[1])) do
    if group.name == ARGV[1] or string.sub(group.name, 1, #ARGV[1] + 1) == ARGV[1] .. '-' then
      call('XGROUP', 'DESTROY', KEYS[1], group.name)
    end
  end
end
local gated = call('HGET', (string.gsub(KEYS[1], 'stream$', 'ledger')), sentinels.GATED) or '0'
if ARGV[4] ~= '' and not appending.is_deleted(KEYS[1], gated) then
  streams.skip(KEYS[1], ARGV[4])
end
local turn = tonumber(call('HGET', KEYS[3], '!turn') or '0') or 0
call('HSET', KEYS[3], '!turn', string.format('%.0f', turn + 1))
call('SET', KEYS[2], ARGV[3])
return { 'closed' }
