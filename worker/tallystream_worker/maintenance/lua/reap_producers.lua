#!lua
-- reap_producers: forgets the sequences of producers that have not appended for long.
--
-- KEYS[1] sequences (hash: producer -> "<sequence> <stream id>")
-- ARGV[1] cursor   ARGV[2] milliseconds of silence   ARGV[3] about how many fields one call looks at
--
-- Returns { next cursor, producers forgotten }
--
-- Invariant: only names that a producer drew for one run of its process (16 hexadecimal digits) are forgotten. Whoever
-- comes back under a name that it chose to be known by, as resumable ingest and spools do, is still known.
local call = redis.call
local now = call('TIME')
local oldest = now[1] * 1000 - ARGV[2]
local cursor, found = unpack(call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[3]))
local old = {}
for i = 1, #found, 2 do
  local ms = string.match(found[i + 1], '^%d+ (%d+)%-%d+$')
  if #found[i] == 16 and not string.find(found[i], '[^0-9a-f]') and ms and tonumber(ms) < oldest then
    old[#old + 1] = found[i]
  end
end
for first = 1, #old, 1000 do
  call('HDEL', KEYS[1], unpack(old, first, math.min(first + 999, #old)))
end
return { cursor, #old }
