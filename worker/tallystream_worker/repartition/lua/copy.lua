#!lua
-- copy: appends parts of another topic's entries, each once, in the order of the arguments.
--
-- KEYS[1] stream   KEYS[2] copied (hash: partition of the other topic -> ID of its last entry that was copied to here)
-- KEYS[3] the topic's ledger (hash)
-- ARGV[1] number of marks that follow, each as: partition, its ID before the call ("" for none), its ID after the call
-- Then the parts, each as: the millisecond of its entry, number of events that it adds to the ledger (0 for a plain
-- entry, which is added when it is counted), number of arguments that follow, then the fields and values of its entry
--
-- Returns {"copied"}
--         {"at", partition, ID}   the mark of this partition is this ID ("" for none); nothing was changed
--         {"closed"}              the topic that is copied to was replaced; nothing was changed
--         {"damaged", key}        the partition has lost this key (see lib/sentinels.lua), or the topic was given up
--                                 and its keys are removed; nothing was changed
--
-- Invariant: the marks move only in the call that appends the parts, so each part up to a mark is here, once.
-- The ID of a copy keeps the millisecond of its entry, unless the stream has a later ID. Lateness is measured by the
-- times in the fields of the copy. All these times come from the ID and the fields of the entry, not from a clock.
local appending = require('tallystream.storage.lua.lib.appending')
local generations = require('tallystream.storage.lua.lib.generations')
local maps = require('tallystream.storage.lua.lib.maps')
local numbers = require('tallystream.storage.lua.lib.numbers')
local sentinels = require('tallystream.storage.lua.lib.sentinels')
local streams = require('tallystream.storage.lua.lib.streams')
local call = redis.call
local stream, copied, ledger = KEYS[1], KEYS[2], KEYS[3]
local sequences = string.gsub(stream, 'stream$', 'seq')
local marks = tonumber(ARGV[1])
local COPIED = 'entries:copied' -- field of the ledger, a sentinel: marks were written

local lost = sentinels.lost(stream)
if lost then
  return { 'damaged', lost }
end
if not generations.is_open((string.gsub(stream, 'stream$', 'live'))) then
  return { 'closed' }
end
if call('EXISTS', copied) == 0 and call('HEXISTS', ledger, COPIED) == 1 then
  return { 'damaged', copied } -- without the marks, every entry would be copied again
end
local moves = {}
for i = 1, marks do
  local source, from, to = ARGV[3 * i - 1], ARGV[3 * i], ARGV[3 * i + 1]
  local at = call('HGET', copied, source) or ''
  if at ~= from then
    return { 'at', source, at }
  end
  moves[#moves + 1], moves[#moves + 2] = source, to
end
numbers.check_whole(ledger, appending.LEDGER_FIELDS)
local last = streams.parse_id(streams.last_id(stream)) or 0

-- From here on nothing fails.
local events, entries, at = 0, 0, 3 * marks + 2
local id, earliest = nil, math.huge
while ARGV[at] do
  local count = tonumber(ARGV[at + 2])
  last = math.max(last, tonumber(ARGV[at]))
  local fields = { unpack(ARGV, at + 3, at + 2 + count) }
  id = call('XADD', stream, string.format('%.0f-*', last), unpack(fields))
  earliest = math.min(earliest, streams.received(id, maps.from_flat(fields)))
  if ARGV[at + 1] ~= '0' then
    events, entries = events + tonumber(ARGV[at + 1]), entries + 1
  end
  at = at + 3 + count
end
if id then
  appending.add_stated(sequences, id, earliest)
end
if entries > 0 then
  appending.add_to_ledger(ledger, string.format('%.0f', events), entries)
end
if #moves > 0 then
  call('HSET', copied, unpack(moves))
  call('HSET', ledger, COPIED, 1)
end
return { 'copied' }
