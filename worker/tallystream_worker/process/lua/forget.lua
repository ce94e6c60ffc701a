#!lua
-- forget: removes a field of a hash that describes a deployment, if the field has the value that the caller knows.
--
-- KEYS[1] meta (hash)   ARGV[1] field   ARGV[2] its value
--
-- Returns {"forgotten"}   the hash does not have the field; it may not have had it before
--         {"other"}       the field has another value; nothing was changed
--
-- Invariant: a process that was paused does not remove what another process has written since.
local found = redis.call('HGET', KEYS[1], ARGV[1])
if found and found ~= ARGV[2] then
  return { 'other' }
end
redis.call('HDEL', KEYS[1], ARGV[1])
return { 'forgotten' }
