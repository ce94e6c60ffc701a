#!lua
-- graft: puts a stream, its ledger and its sequences, put together again, in the place of what is left of the old ones.
--
-- KEYS[1] the new stream   KEYS[2] its ledger   KEYS[3] its sequences   KEYS[4..6] where each goes
-- ARGV[1] last ID that was copied from what is left of the stream; "" where nothing was there
--
-- Returns 1, or 0 where something has been appended since: copy that first.
--
-- Invariant: no entry that is in the stream when this returns 1 is missing from what replaces it, and the gate knows
-- of each producer the last entry that is in the stream, before and after: so nobody has cause to send one again.
local last = ''
if redis.call('EXISTS', KEYS[4]) == 1 then
  local about = redis.call('XINFO', 'STREAM', KEYS[4])
  for i = 1, #about, 2 do
    if about[i] == 'last-generated-id' then
      last = about[i + 1]
    end
  end
end
if last ~= ARGV[1] then
  return 0
end
for i = 1, 3 do
  if redis.call('EXISTS', KEYS[i]) == 1 then
    redis.call('RENAME', KEYS[i], KEYS[i + 3])
  else
    redis.call('DEL', KEYS[i + 3])
  end
end
return 1
