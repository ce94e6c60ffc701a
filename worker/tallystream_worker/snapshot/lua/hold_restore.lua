#!lua
-- hold_restore: keeps or releases the lock of a restore.
--
-- KEYS[1] lock   KEYS[2] meta (hash)
-- ARGV[1] the value of the lock of this restore   ARGV[2] milliseconds until the lock expires; 0 to release it
-- ARGV[3] the number of the last closing that the hash has if no other restore has begun since: that of this restore,
--         or, if it has not begun, the number before it ("" for none); "?" if it is not known
-- ARGV[4] the token of the restore that runs, or was interrupted last, which the hash has then; "" for none
--
-- Returns {"held"}       the lock expires after these milliseconds from now
--         {"released"}   the lock is not that of this restore any more
--         {"lost"}       another restore has the lock, or has had it: nothing was changed
--
-- Invariant: a lock that has expired comes back only if no other restore has begun since.
local call = redis.call
local holder = call('GET', KEYS[1])
if ARGV[2] == '0' then
  if holder == ARGV[1] then
    call('DEL', KEYS[1])
  end
  return { 'released' }
end
local closing, token = unpack(call('HMGET', KEYS[2], 'closing', 'restoring-by'))
local is_latest = (closing or '') == ARGV[3] and (token or '') == ARGV[4]
if holder ~= ARGV[1] and (holder or not is_latest) then
  return { 'lost' }
end
call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return { 'held' }
