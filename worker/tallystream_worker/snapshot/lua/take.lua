#!lua
-- take: returns some of the old values that are stored for a snapshot, and keeps its view open.
--
-- KEYS[1] cut
-- ARGV[1] token of this snapshot   ARGV[2] milliseconds that it may pause   ARGV[3] the most words to return
--
-- Returns {"taken", word, ...}   words of `cut:before`, which are removed
--         {"lost"}               the view is no longer open, or it is that of another snapshot: nothing was changed
--
-- Invariant: a snapshot that was only slow does not take the words of the one that has taken over from it.
local call = redis.call

if call('GET', KEYS[1]) ~= ARGV[1] then
  return { 'lost' }
end
call('PEXPIRE', KEYS[1], ARGV[2])
return { 'taken', unpack(call('LPOP', KEYS[1] .. ':before', ARGV[3]) or {}) }
