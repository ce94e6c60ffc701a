#!lua
-- open: fixes the moment of a snapshot, and returns what is applied at it.
--
-- KEYS[1] stream   KEYS[2] cut   KEYS[3] ledger (hash)   KEYS[4] the topic's ledger (hash)
-- ARGV[1] group   ARGV[2] token of this snapshot   ARGV[3] milliseconds that it may be silent   ARGV[4..] keys to copy
--
-- Returns {"busy"}   another one is being taken
--         {"open", milliseconds now, last delivered, last generated, { pending ID, ... }, { ledger field, value, ... },
--          { appended, plain }}   the last two are the topic's, if its ledger is another
-- Raises NOGROUP if the group is gone.
--
-- Invariant: what is returned, and every counter as long as `cut` exists, is of the same moment: see copy_on_write.lua.
-- The copies are of structures that every write changes all over: sketches and their leaderboards.
local clock = require('tallystream.storage.lua.lib.clock')
local streams = require('tallystream.storage.lua.lib.streams')
local call = redis.call
local stream, cut, group = KEYS[1], KEYS[2], ARGV[1]
local COPY_TTL = 600000 -- milliseconds
local MOST_PENDING = 10000

if call('EXISTS', cut) == 1 then
  return { 'busy' }
end
local delivered = streams.existing_group(stream, group)['last-delivered-id']
local generated = streams.last_id(stream)
local pending = {}
for i, row in ipairs(call('XPENDING', stream, group, '-', '+', MOST_PENDING)) do
  pending[i] = row[1]
end

call('DEL', cut .. ':before', cut .. ':copied')
call('SET', cut, ARGV[2], 'PX', ARGV[3])
for i = 4, #ARGV do
  local copy = cut .. ':copy:' .. ARGV[i]
  call('DEL', copy)
  if call('COPY', ARGV[i], copy) == 1 then
    call('PEXPIRE', copy, COPY_TTL)
  end
end
return {
  'open',
  string.format('%.0f', clock.milliseconds()),
  delivered,
  generated,
  pending,
  call('HGETALL', KEYS[3]),
  call('HMGET', KEYS[4], 'appended', 'plain'),
}
