#!lua
-- note: sets fields of a hash that describes a deployment, if the hash still exists.
--
-- KEYS[1] meta (hash)   ARGV[1] epoch of the deployment   ARGV[2..] field, value, field, value, ...
--
-- Returns {"noted"}
--         {"gone"}   the hash was deleted, or describes other data; nothing was changed
--
-- Invariant: a hash that was deleted is not created again with these fields alone: other processes could not read it,
-- and would not find that it is lost.
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then
  return { 'gone' }
end
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
return { 'noted' }
