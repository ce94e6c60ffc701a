#!lua
-- graft: puts a stream that was put together again in the place of what is left of the old one.
--
-- KEYS[1] the new one   KEYS[2] stream   ARGV[1] last ID that was copied from what is left; "" where nothing was there
--
-- Returns 1, or 0 where something has been appended since: copy that first.
--
-- Invariant: no entry that is in the stream when this returns 1 is missing from what replaces it.
local last = ''
if redis.call('EXISTS', KEYS[2]) == 1 then
  local about = redis.call('XINFO', 'STREAM', KEYS[2])
  for i = 1, #about, 2 do
    if about[i] == 'last-generated-id' then
      last = about[i + 1]
    end
  end
end
if last ~= ARGV[1] then
  return 0
end
redis.call('RENAME', KEYS[1], KEYS[2])
return 1
