#!lua
-- drop: removes dead letters for good, and adds them to the ledger as dropped.
--
-- KEYS[1] dead stream   KEYS[2] ledger (hash)   ARGV[1..] IDs in the dead stream
--
-- Returns {"dropped", entries, events}   the number of entries that existed and were removed, and of their events
--
-- Invariant: the events stay in the ledger's `dead`; `dropped` is the number of these that can no longer be retried.
local maps = require('tallystream.storage.lua.lib.maps')
local call = redis.call

local entries, events = 0, 0
call('HGET', KEYS[2], 'dropped') -- a key of another type is an error here, before anything is written
for _, id in ipairs(ARGV) do
  local found = call('XRANGE', KEYS[1], id, id)[1]
  if found then
    events = events + (tonumber(maps.from_flat(found[2]).events) or 0)
    entries = entries + call('XDEL', KEYS[1], id)
  end
end
if events > 0 then
  call('HINCRBY', KEYS[2], 'dropped', string.format('%.0f', events))
end
return { 'dropped', entries, events }
