#!lua
-- close: ends a snapshot's reading; nobody says any more what was there before.
--
-- KEYS[1] cut   ARGV[1] token of this snapshot
--
-- Returns {"closed", word, ...}   the words of `cut:before` that are left
--         {"more"}                too many are left: take them first
--         {"lost"}                the snapshot was silent for too long: what was read is of no one moment
local cut = KEYS[1]
if redis.call('GET', cut) ~= ARGV[1] then
  return { 'lost' }
end
if redis.call('LLEN', cut .. ':before') > 5000 then
  return { 'more' }
end
local words = redis.call('LRANGE', cut .. ':before', 0, -1)
redis.call('DEL', cut, cut .. ':before', cut .. ':copied')
return { 'closed', unpack(words) }
