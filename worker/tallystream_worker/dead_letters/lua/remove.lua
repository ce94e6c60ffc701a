-- remove: removes dead letters from the dead stream; while a snapshot is being read, it stores their fields first.
--
-- A snapshot reads the dead letters after its moment. Like the old values of counters (copy_on_write.lua), a removed
-- one is appended to the list `cut:before`: 'd', ID, n, then n words: the names and values of its fields.
local call = redis.call

-- Removes the dead letter with this ID, and returns 1; returns 0 if it does not exist.
local function remove(dead, id)
  local cut = string.gsub(dead, 'dead$', 'cut')
  local ttl = call('PTTL', cut)
  local found = ttl > 0 and call('XRANGE', dead, id, id)[1]
  if found then
    call('RPUSH', cut .. ':before', 'd', id, #found[2], unpack(found[2]))
    call('PEXPIRE', cut .. ':before', ttl)
  end
  return call('XDEL', dead, id)
end

return remove
