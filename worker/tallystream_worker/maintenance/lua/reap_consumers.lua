#!lua
-- reap_consumers: deletes consumers that have been silent for long, after it gave their pending entries to another one.
--
-- KEYS[1] stream
-- ARGV[1] group   ARGV[2] new owner   ARGV[3] milliseconds of silence   ARGV[4] entries that one call takes over
--
-- Returns {"reaped", consumers deleted, entries claimed for the new owner}
--
-- Invariant: a consumer is deleted only in a call that has found its pending list empty, because deleting a consumer
-- also deletes that list.
local maps = require('tallystream.storage.lua.lib.maps')
local call = redis.call
local stream, group, new_owner, silence, most = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])

-- Gives up to `count` pending entries of a consumer to the new owner; returns how many.
local function take_over(consumer, count)
  local ids = {}
  for _, row in ipairs(call('XPENDING', stream, group, '-', '+', count, consumer)) do
    ids[#ids + 1] = row[1]
  end
  -- JUSTID: this is not a delivery. IDLE: any worker that claims idle entries can claim these at once.
  local n = #ids
  ids[n + 1], ids[n + 2], ids[n + 3] = 'IDLE', ARGV[3], 'JUSTID'
  call('XCLAIM', stream, group, new_owner, 0, unpack(ids))
  return n
end

local forgotten, taken = 0, 0
for _, flat in ipairs(call('XINFO', 'CONSUMERS', stream, group)) do
  local consumer = maps.from_flat(flat)
  if consumer.name ~= new_owner and consumer.idle >= silence then
    if consumer.pending > 0 and most > taken then
      taken = taken + take_over(consumer.name, most - taken)
    end
    if #call('XPENDING', stream, group, '-', '+', 1, consumer.name) == 0 then
      call('XGROUP', 'DELCONSUMER', stream, group, consumer.name)
      forgotten = forgotten + 1
    end
  end
end
return { 'reaped', forgotten, taken }
