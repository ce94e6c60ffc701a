#!lua
-- reopen: lets a partition that was closed take entries again, and count them again; the repartition was given up.
--
-- KEYS[1] sequences (hash)   KEYS[2] live generation
--
-- Returns {"reopened"}   it was closed
--         {"open"}       it was not closed
--
-- Invariant: the generation that was live when the partition was closed is the live one again.
local call = redis.call
local live = call('GET', KEYS[2])
local closed = call('HDEL', KEYS[1], '!closed')
if live then
  call('SET', KEYS[2], (string.gsub(live, ' closed$', '')))
end
return { closed == 1 and 'reopened' or 'open' }
