#!lua
-- init_deployment: agrees on what is stored here. The first caller writes it; every other caller reads it.
--
-- KEYS[1] meta (hash)   ARGV: field, value, field, value, ...
--
-- Returns {"created", field, value, ...}   the hash was empty; now it has these fields
--         {"loaded", field, value, ...}    the hash had these fields; nothing was written
--
-- Invariant: layout, partitions, tags and epoch never change once written.
local status = 'loaded'
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('HSET', KEYS[1], unpack(ARGV))
  status = 'created'
end
return { status, unpack(redis.call('HGETALL', KEYS[1])) }
