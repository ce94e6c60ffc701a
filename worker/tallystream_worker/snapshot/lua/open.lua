#!lua
-- open: fixes the moment of a snapshot, and returns which entries are applied at it.
--
-- KEYS[1] stream   KEYS[2] cut   KEYS[3] ledger (hash)   KEYS[4] the topic's ledger (hash)   KEYS[5] dead stream
-- ARGV[1] group   ARGV[2] token of this snapshot   ARGV[3] milliseconds that it may pause
-- ARGV[4] milliseconds without a call after which another snapshot is replaced   ARGV[5..] keys to copy
--
-- Returns {"busy"}   another snapshot is being taken
--         {"open", milliseconds now, last delivered, last generated, { pending ID, ... }, { ledger field, value, ... },
--          { appended, plain }, dead}   `appended` and `plain` are from the topic's ledger; `dead` is the state of the
--          dead stream: entries added, length, first ID, last generated ID, separated by spaces
--         {"damaged", key}   the partition has lost this key (a sentinel or `forgotten`): the last snapshot repairs it
-- Raises NOGROUP if the group does not exist.
--
-- Invariant: as long as `cut` exists, the value that every counter has at this moment can be read: see
-- copy_on_write.lua. Structures of which each write changes many parts (sketches and their leaderboards) are copied.
-- A snapshot that is replaced can do nothing more, because its token is gone: see take.lua, close.lua, give_up.lua.
local clock = require('tallystream.storage.lua.lib.clock')
local parts = require('tallystream.storage.lua.rules.parts')
local sentinels = require('tallystream.storage.lua.lib.sentinels')
local remove_view = require('tallystream_worker.snapshot.lua.remove_view')
local streams = require('tallystream.storage.lua.lib.streams')
local call = redis.call
local stream, cut, group = KEYS[1], KEYS[2], ARGV[1]
local COPY_TTL = 600000 -- milliseconds
local MOST_PENDING = 10000

-- Returns the state of the dead stream: a change of its entries changes the state.
local function state_of(dead)
  if call('EXISTS', dead) == 0 then
    return '0 0 0-0 0-0'
  end
  local about = streams.info(dead)
  local first = about['first-entry']
  local last = about['last-generated-id']
  return string.format('%.0f %.0f %s %s', about['entries-added'], about.length, first and first[1] or '0-0', last)
end

local left = call('PTTL', cut) -- each call of a snapshot sets it to ARGV[3]
if left > ARGV[3] - ARGV[4] then
  return { 'busy' }
end
local lost = sentinels.lost(stream) or parts.find_lost(KEYS[3])
if lost then
  return { 'damaged', lost }
end
local delivered = streams.existing_group(stream, group)['last-delivered-id']
local generated = streams.last_id(stream)
local dead = state_of(KEYS[5])
local pending = {}
for i, row in ipairs(call('XPENDING', stream, group, '-', '+', MOST_PENDING)) do
  pending[i] = row[1]
end

if left >= 0 then -- the process of the other snapshot was killed, or it is slow
  local copies = cut .. ':copy:' .. call('GET', cut) .. ':'
  for i = 5, #ARGV do
    call('UNLINK', copies .. ARGV[i])
  end
  remove_view(cut)
end
call('DEL', cut .. ':before', cut .. ':copied')
call('SET', cut, ARGV[2], 'PX', ARGV[3])
for i = 5, #ARGV do
  local copy = cut .. ':copy:' .. ARGV[2] .. ':' .. ARGV[i] -- the token keeps the copies of two snapshots apart
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
  dead,
}
