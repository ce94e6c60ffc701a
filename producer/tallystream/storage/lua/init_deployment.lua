#!lua
-- init_deployment: creates the hash of a deployment. The first caller writes its fields; every other caller reads them.
--
-- KEYS[1] meta (hash)   ARGV: field, value, field, value, ...
--
-- Returns {"created", field, value, ...}   there was no hash; now it has these fields
--         {"loaded", field, value, ...}    the hash had these fields already; nothing was written
--
-- Invariant: layout, partitions, tags and epoch never change after they were written.
local status = 'loaded'
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('HSET', KEYS[1], unpack(ARGV))
  status = 'created'
end
return { status, unpack(redis.call('HGETALL', KEYS[1])) }
