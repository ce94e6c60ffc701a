#!lua
-- note: sets a field of the description of a deployment, if it still exists.
--
-- KEYS[1] meta (hash)   ARGV[1] epoch of the deployment   ARGV[2] field   ARGV[3] value
--
-- Returns {"noted"}
--         {"gone"}   the hash was deleted, or describes other data; nothing was changed
--
-- Invariant: a description that was deleted is not created again with this field alone: other processes could not read
-- it, and would not find out that it is lost.
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then
  return { 'gone' }
end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
return { 'noted' }
