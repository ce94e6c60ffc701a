#!lua
-- add: adds to a number in a hash that describes a deployment, if the hash still exists.
--
-- KEYS[1] meta (hash)   ARGV[1] epoch of the deployment   ARGV[2] field   ARGV[3] what is added
--
-- Returns {"added", number}   the number after the addition
--         {"gone"}            the hash was deleted, or describes other data; nothing was changed
--
-- Invariant: a hash that was deleted is not created again with this field alone: see note.lua.
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then
  return { 'gone' }
end
return { 'added', redis.call('HINCRBY', KEYS[1], ARGV[2], ARGV[3]) }
