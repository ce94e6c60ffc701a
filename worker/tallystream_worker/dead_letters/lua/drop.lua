#!lua
-- drop: removes dead letters for good, and adds them to the ledger as dropped. It stores the records of those that have
-- one, so that no later fold of their entries counts their events.
--
-- KEYS[1] dead stream   KEYS[2] ledger (hash)   KEYS[4] stream   KEYS[5] retention holds (hash)
-- KEYS[6] live generation
-- KEYS[3] records of the dropped dead letters (hash): live consumer group, space, ID in its dead stream -> record
-- ARGV[1] name of the first generation's consumer group; the others append '-' and their number
-- ARGV[2] consumer group of the live generation
-- ARGV[3..] ID in the dead stream, record or '' for none; for each dead letter
--
-- Returns {"dropped", entries, events, left}: the number of entries that existed and were removed, and of their events;
--         the number of entries that were left: those with a record, if another generation or topic may have counted
--         their events
--         {"closed"}         a repartition has closed the partition, or a restore replaces its counters; nothing was
--         changed
--         {"damaged", key}   the partition has lost this key (see lib/sentinels.lua); nothing was changed
--
-- Invariant: the events stay in the ledger's `dead`; `dropped` is the number of these that can no longer be retried. A
-- record is written only if no other generation or topic exists that may have counted the events.
local generations = require('tallystream.storage.lua.lib.generations')
local maps = require('tallystream.storage.lua.lib.maps')
local remove = require('tallystream_worker.dead_letters.lua.remove')
local call, sub = redis.call, string.sub

-- Returns whether another generation of the partition exists, or its entries are copied to another topic.
local function has_copies(first, live)
  if call('HEXISTS', KEYS[5], 'move') == 1 then
    return true
  end
  if call('EXISTS', KEYS[4]) == 1 then
    for _, group in ipairs(call('XINFO', 'GROUPS', KEYS[4])) do
      local name = maps.from_flat(group).name
      if name ~= live and (name == first or sub(name, 1, #first + 1) == first .. '-') then
        return true
      end
    end
  end
  return false
end

local lost = require('tallystream.storage.lua.lib.sentinels').lost(KEYS[4])
if lost then
  return { 'damaged', lost }
end
if not generations.is_open(KEYS[6]) then
  return { 'closed' }
end
local is_copied = has_copies(ARGV[1], ARGV[2])
local entries, events, left, records = 0, 0, 0, 0
call('HGET', KEYS[2], 'dropped') -- a key of another type is an error here, before anything is written
call('HLEN', KEYS[3])
for i = 3, #ARGV, 2 do
  local id, record = ARGV[i], ARGV[i + 1]
  local found = call('XRANGE', KEYS[1], id, id)[1]
  if found and record ~= '' and is_copied then
    left = left + 1
  elseif found then
    events = events + (tonumber(maps.from_flat(found[2]).events) or 0)
    entries = entries + remove(KEYS[1], id)
    if record ~= '' then
      records = records + call('HSET', KEYS[3], ARGV[2] .. ' ' .. id, record)
    end
  end
end
if records > 0 then -- by this number, a rebuild finds out that records were lost
  call('HINCRBY', string.gsub(KEYS[3], 'dropped$', 'ledger'), 'entries:dropped', records)
end
if events > 0 then
  call('HINCRBY', KEYS[2], 'dropped', string.format('%.0f', events))
end
return { 'dropped', entries, events, left }
