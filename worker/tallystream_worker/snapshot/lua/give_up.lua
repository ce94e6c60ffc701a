#!lua
-- give_up: removes an open view with its old values and copies, because its snapshot has failed.
--
-- KEYS[1] cut   ARGV[1] token of this snapshot
--
-- Returns {"given_up"}
--         {"lost"}       the view is no longer open, or it is that of another snapshot: nothing was changed
--
-- Invariant: the view of a snapshot that has taken over stays.
local remove_view = require('tallystream_worker.snapshot.lua.remove_view')

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return { 'lost' }
end
remove_view(KEYS[1])
return { 'given_up' }
