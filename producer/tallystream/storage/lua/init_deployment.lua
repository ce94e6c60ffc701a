#!lua
-- establish: agrees on what is stored here. The first to come writes it; everybody after reads it.
--
-- KEYS[1] meta (hash)   ARGV: field, value, field, value, ...
-- Returns all fields of the hash, flat.
--
-- Invariant: layout, partitions, tags and epoch never change once written.
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('HSET', KEYS[1], unpack(ARGV))
end
return redis.call('HGETALL', KEYS[1])
