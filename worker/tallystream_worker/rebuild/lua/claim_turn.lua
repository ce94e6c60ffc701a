#!lua
-- claim_turn: gives a command that changes generations a number, which is higher than those of all earlier commands.
--
-- KEYS[1] meta (hash)   ARGV[1] epoch of the deployment   ARGV[2] the highest number that a partition has
--
-- Returns {"claimed", number}
--         {"gone"}   the hash was deleted, or describes other data; nothing was changed
--
-- Invariant: no two commands have the same number, unless a failover has taken back the earlier claim and every
-- partition that had its number.
local call = redis.call
if call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then
  return { 'gone' }
end
local number = string.format('%.0f', math.max(tonumber(call('HGET', KEYS[1], 'turn') or '0'), tonumber(ARGV[2])) + 1)
call('HSET', KEYS[1], 'turn', number)
return { 'claimed', number }
