#!lua
-- drop_dead: removes parked entries for good, and says so in the books.
--
-- KEYS[1] dead stream   KEYS[2] ledger (hash)   ARGV[1..] IDs in the dead stream
--
-- Returns { entries, events } that were removed: those of the IDs that were still there.
--
-- Invariant: the events stay in the ledger's `dead`; `dropped` says how many of those cannot be retried any more.
local entries, events = 0, 0
redis.call('HGET', KEYS[2], 'dropped')
for _, id in ipairs(ARGV) do
  local found = redis.call('XRANGE', KEYS[1], id, id)[1]
  if found then
    for i = 1, #found[2], 2 do
      if found[2][i] == 'events' then
        events = events + (tonumber(found[2][i + 1]) or 0)
      end
    end
    entries = entries + redis.call('XDEL', KEYS[1], id)
  end
end
if events > 0 then
  redis.call('HINCRBY', KEYS[2], 'dropped', string.format('%.0f', events))
end
return { entries, events }
