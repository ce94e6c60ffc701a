#!lua
-- reap_consumers: forgets consumers that have been silent for long, and loses nothing that they held.
--
-- KEYS[1] stream
-- ARGV[1] group   ARGV[2] who takes over   ARGV[3] milliseconds of silence   ARGV[4] entries that one call takes over
--
-- Returns { consumers forgotten, entries taken over }
--
-- Invariant: a consumer is deleted only in a call that has seen it hold nothing: deleting drops its pending list.
local call = redis.call
local stream, group, heir, silence, room = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local forgotten, taken = 0, 0
for _, flat in ipairs(call('XINFO', 'CONSUMERS', stream, group)) do
  local consumer = {}
  for i = 1, #flat, 2 do
    consumer[flat[i]] = flat[i + 1]
  end
  if consumer.name ~= heir and consumer.idle >= silence then
    if consumer.pending > 0 and room > taken then
      local ids = {}
      for _, row in ipairs(call('XPENDING', stream, group, '-', '+', room - taken, consumer.name)) do
        ids[#ids + 1] = row[1]
      end
      taken = taken + #ids
      -- No delivery, and as idle as before: whoever looks for stale entries finds them at once.
      ids[#ids + 1], ids[#ids + 2], ids[#ids + 3] = 'IDLE', ARGV[3], 'JUSTID'
      call('XCLAIM', stream, group, heir, 0, unpack(ids))
    end
    if #call('XPENDING', stream, group, '-', '+', 1, consumer.name) == 0 then
      call('XGROUP', 'DELCONSUMER', stream, group, consumer.name)
      forgotten = forgotten + 1
    end
  end
end
return { forgotten, taken }
