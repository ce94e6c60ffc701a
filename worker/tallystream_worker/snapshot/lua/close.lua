#!lua
-- close: ends the reading of a snapshot; scripts then no longer store old values before they write.
--
-- KEYS[1] cut   ARGV[1] token of this snapshot
--
-- Returns {"closed", word, ...}   the words of `cut:before` that are left
--         {"more"}                too many words are left: fetch some first
--         {"lost"}                the snapshot paused for too long, so what was read is not of one moment
--
-- The copies stay: the snapshot reads them after this call, and then removes them.
--
-- Invariant: `cut` is removed in the call that returns the last words, so a closed snapshot lacks no old value.
local call = redis.call
local cut = KEYS[1]
local MOST_WORDS = 5000 -- unpack fails at about 8,000

if call('GET', cut) ~= ARGV[1] then
  return { 'lost' }
end
if call('LLEN', cut .. ':before') > MOST_WORDS then
  return { 'more' }
end
local words = call('LRANGE', cut .. ':before', 0, -1)
call('DEL', cut, cut .. ':before', cut .. ':copied')
return { 'closed', unpack(words) }
