#!lua
-- hold: moves the retention hold of a repartition in a partition that it reads.
--
-- KEYS[1] stream   KEYS[2] sequences (hash)   KEYS[3] retention holds (hash)
-- ARGV[1] the topic that is filled   ARGV[2] the name of the hold   ARGV[3] the ID up to which entries were copied
--
-- Returns {"held"}    the hold is this ID
--         {"other"}   no repartition to this topic reads the partition: it was given up, another one has begun, or the
--                     partition was removed; nothing was changed
--
-- Invariant: a repartition that was given up, or a paused process of it, leaves no hold in a live partition, which
-- would never be trimmed then, and changes no hold of a later repartition, whose entries could be trimmed then.
local call = redis.call

local topic = string.match(call('HGET', KEYS[2], '!copying') or '', '^%d+')
if topic ~= ARGV[1] or call('EXISTS', KEYS[1]) == 0 then
  return { 'other' }
end
call('HSET', KEYS[3], ARGV[2], ARGV[3])
return { 'held' }
