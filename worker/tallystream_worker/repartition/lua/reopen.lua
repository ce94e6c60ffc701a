#!lua
-- reopen: a partition that was closed takes entries again, and they are counted again; the move was given up.
--
-- KEYS[1] sequences (hash)   KEYS[2] live generation
-- Returns 1 where it was closed, else 0.
local live = redis.call('GET', KEYS[2])
local closed = redis.call('HDEL', KEYS[1], '!closed')
if live then
  redis.call('SET', KEYS[2], (string.gsub(live, ' closed$', '')))
end
return closed
