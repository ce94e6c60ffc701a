#!lua
-- losses: moves the events of entries that vanished before they were counted to the ledger's `trimmed`.
--
-- KEYS[1] stream   KEYS[2] the generation's ledger (hash)   KEYS[3] the topic's ledger (hash)
-- KEYS[3] equals KEYS[2] for the first generation
-- ARGV[1] group
--
-- Returns {"waiting"}                    entries are pending or unread, so it is not known how many are missing
--         {"settled", entries, events}   these had vanished and are in the ledger now (mostly 0, 0)
--         {"open", entries, events}      events are missing, but no entries vanished: a fault; nothing was changed
--         {"damaged", key}               the partition has lost this key (see lib/sentinels.lua); nothing was changed
-- Raises NOGROUP if the group is gone.
--
-- Two figures, which only the server and the other scripts change, prove that entries vanished: the stream has had more
-- entries than were settled, and at least as many were removed by others since the ledger last balanced.
-- Both must be true: an entry that was acknowledged without being counted is missing, but has not vanished.
--
-- Invariant: `trimmed` grows only by the events that are missing while no entry is pending or unread, so it can make
-- the ledger balance, but cannot unbalance it.
local maps = require('tallystream.storage.lua.lib.maps')
local sentinels = require('tallystream.storage.lua.lib.sentinels')
local streams = require('tallystream.storage.lua.lib.streams')
local stream, ledger, topic = KEYS[1], KEYS[2], KEYS[3]
local call = redis.call

local lost = sentinels.lost(stream)
if lost then
  return { 'damaged', lost }
end
local info, group = streams.info(stream), streams.existing_group(stream, ARGV[1])
local delivered, generated = group['last-delivered-id'], info['last-generated-id']
if group.pending > 0 or #call('XRANGE', stream, '(' .. delivered, '+', 'COUNT', 1) > 0 then
  return { 'waiting' }
end

local fields = maps.from_flat(call('HGETALL', ledger))
local function figure(name)
  return tonumber(fields[name] or 0)
end
local function topic_figure(name)
  return tonumber(call('HGET', topic, name) or 0)
end

local outcomes = 0 -- events that have an outcome
for _, name in ipairs({ 'counted', 'duplicate', 'late', 'dead', 'trimmed', 'retracted' }) do
  outcomes = outcomes + figure(name)
end
for name, events in pairs(fields) do
  if string.match(name, '^rejected:[^@]*$') then
    outcomes = outcomes + tonumber(events)
  end
end
local appended = figure('appended')
if ledger ~= topic then -- a later generation: the topic's ledger has `appended`; see tallystream.reading.ledger
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

-- Move the group's last delivered ID to the end of the stream. If the last entries vanished unread, the server's lag
-- would otherwise never fall to 0. No entry lies between the two IDs, so none is skipped. If the user may not do this
-- (ACL of an earlier release), the ledger is still changed, and the lag stays wrong until the next read, or on Redis
-- 7.0 for good.
if delivered ~= generated or group.lag ~= 0 then
  redis.pcall('XGROUP', 'SETID', stream, ARGV[1], generated, 'ENTRIESREAD', added)
end
if missing < 0 or (missing > 0 and (unsettled <= 0 or removed < unsettled)) then
  return { 'open', unsettled, missing }
end
-- The event of a plain entry is added to `appended` when it is counted, so add those of the vanished plain entries now.
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
