#!lua
-- losses: moves the events of entries that vanished before they were counted to the ledger's `trimmed`.
--
-- KEYS[1] stream   KEYS[2] the generation's ledger (hash)   KEYS[3] the topic's ledger (hash)
-- KEYS[3] equals KEYS[2] for the first generation
-- ARGV[1] group
--
-- Returns {"waiting"}                    something is pending or unread: that hides what is missing
--         {"settled", entries, events}   so many had vanished: now they are in the ledger (mostly 0, 0)
--         {"open", entries, events}      events are missing, but no entries vanished: a fault, left as it is
-- Raises NOGROUP if the group is gone.
--
-- Proof is taken from figures that only the server and the other scripts move: the stream has had more entries
-- than something became of, and at least as many were removed by others since the ledger balanced last.
-- Both must be true: an entry that was acknowledged and not counted is missing, but has not vanished.
--
-- Invariant: `trimmed` grows only by what is missing at rest, so it can make the ledger balance and never tip it.
local maps = require('tallystream.storage.lua.lib.maps')
local streams = require('tallystream.storage.lua.lib.streams')
local stream, ledger, topic = KEYS[1], KEYS[2], KEYS[3]
local call = redis.call

local info, group = streams.info(stream), streams.existing_group(stream, ARGV[1])
local delivered, generated = group['last-delivered-id'], info['last-generated-id']
if group.pending > 0 or #call('XRANGE', stream, '(' .. delivered, '+', 'COUNT', 1) > 0 then
  return { 'waiting' }
end

local books = maps.from_flat(call('HGETALL', ledger))
local function figure(name)
  return tonumber(books[name] or 0)
end
local function topic_figure(name)
  return tonumber(call('HGET', topic, name) or 0)
end

local outcomes = 0 -- events that something became of
for _, name in ipairs({ 'counted', 'duplicate', 'late', 'dead', 'trimmed', 'retracted' }) do
  outcomes = outcomes + figure(name)
end
for name, events in pairs(books) do
  if string.match(name, '^rejected:[^@]*$') then
    outcomes = outcomes + tonumber(events)
  end
end
local appended = figure('appended')
if ledger ~= topic then -- a later generation: the topic's ledger has what was appended; see tallystream.reading.ledger
  appended = appended + topic_figure('appended') - topic_figure('plain')
end
local missing = appended - outcomes
local added = info['entries-added']
local unsettled = added - figure('entries:settled')
local unplain = added - topic_figure('entries:gated') - figure('entries:plain')
local removed = added - info.length - topic_figure('entries:retired') - figure('entries:removed')

local function move(name, by)
  if by ~= 0 then
    call('HINCRBY', ledger, name, string.format('%.0f', by))
  end
end

-- Nothing lies between what was delivered last and what was appended last: without this the server's lag never
-- falls to 0 if the last entries vanished unread. Forward over nothing, so no entry can be skipped. A user who may not
-- set it (by an ACL of an earlier release) moves the ledger all the same; the lag then stays wrong: until the next
-- read, or for good (Redis 7.0).
if delivered ~= generated or group.lag ~= 0 then
  redis.pcall('XGROUP', 'SETID', stream, ARGV[1], generated, 'ENTRIESREAD', added)
end
if missing < 0 or (missing > 0 and (unsettled <= 0 or removed < unsettled)) then
  return { 'open', unsettled, missing }
end
-- A plain entry's event is in `appended` only once it is counted: the plain ones among what vanished are still unseen.
local unseen = 0
if unsettled > 0 and removed >= unsettled then
  unseen = math.max(0, math.min(unsettled, unplain))
end
move('appended', unseen)
move('plain', unseen)
move('trimmed', missing + unseen)
move('entries:settled', unsettled)
move('entries:plain', unplain)
move('entries:removed', removed)
return { 'settled', (missing + unseen > 0) and unsettled or 0, missing + unseen }
