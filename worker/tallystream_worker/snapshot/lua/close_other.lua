#!lua
-- close_other: closes a partition of a topic that a restore of another topic replaces.
--
-- KEYS[1] sequences (hash)   KEYS[2] live generation
-- ARGV[1] the number of the closing of the restore: see begin_restore.lua
-- ARGV[2..] fields and values of the sequences
--
-- Returns {"closed"}      the partition is closed; it may have been closed before
--         {"overtaken"}   a later closing has changed the partition: nothing was changed
--
-- Invariant: nothing is appended, counted or decided in the partition, and its counters do not change.
local closings = require('tallystream_worker.snapshot.lua.closings')
local call = redis.call
local CLOSED = '1 closed'

if closings.is_overtaken(KEYS[1], KEYS[2], ARGV[1], CLOSED) then
  return { 'overtaken' }
end
call('HSET', KEYS[1], '!begun', 1, '!closing', ARGV[1], unpack(ARGV, 2))
call('SET', KEYS[2], CLOSED)
return { 'closed' }
