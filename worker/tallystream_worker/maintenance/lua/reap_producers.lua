#!lua
-- reap_producers: deletes the sequences of producers that have not appended for long.
--
-- KEYS[1] sequences (hash: producer -> "<sequence> <stream ID>")
-- ARGV[1] cursor   ARGV[2] milliseconds of silence   ARGV[3] about how many fields one call reads
--
-- Returns {"reaped", next cursor, producers deleted}
--
-- Invariant: only names that a producer drew for one run of its process (16 hexadecimal digits) are deleted. Producers
-- with a chosen name, such as resumable ingest and spools, may return at any time; their sequences are kept.
local chunks = require('tallystream.storage.lua.lib.chunks')
local clock = require('tallystream.storage.lua.lib.clock')
local call = redis.call

local oldest = clock.milliseconds() - ARGV[2]
local cursor, found = unpack(call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[3]))
local old = {}
for i = 1, #found, 2 do
  local producer, milliseconds = found[i], string.match(found[i + 1], '^%d+ (%d+)%-%d+$')
  local is_drawn = #producer == 16 and not string.find(producer, '[^0-9a-f]')
  if is_drawn and milliseconds and tonumber(milliseconds) < oldest then
    old[#old + 1] = producer
  end
end
chunks.each(call, 'HDEL', KEYS[1], old, 1)
return { 'reaped', cursor, #old }
