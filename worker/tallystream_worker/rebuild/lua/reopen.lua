#!lua
-- reopen: repairs a partition that has lost its stream, the records of dropped dead letters, or the key of its live
-- generation.
--
-- KEYS[1] stream   KEYS[2] live generation   KEYS[3] the live generation's ledger (hash)
-- ARGV[1] the value of the live generation   ARGV[2] its group
--
-- Returns {"whole"}          the partition has its stream and its sentinels; nothing was changed
--         {"mended", key, ...}   these keys were lost, and are repaired; a stream has only the entries that were
--                                appended since it was lost
--         {"empty"}          the partition has no sentinel: it has lost all its keys, or most; nothing was changed
--         {"damaged", key}   the partition has lost this key, and others are left; nothing was changed
--
-- Invariant: counters and outcomes do not change. The new stream states as many entries as the ledgers do, and its
-- group has read all of them that are gone. So `losses.lua` can calculate how many of them were never counted.
local clock = require('tallystream.storage.lua.lib.clock')
local maps = require('tallystream.storage.lua.lib.maps')
local sentinels = require('tallystream.storage.lua.lib.sentinels')
local streams = require('tallystream.storage.lua.lib.streams')
local call = redis.call
local stream, live, ledger, group = KEYS[1], KEYS[2], KEYS[3], ARGV[2]
local prefix = string.gsub(stream, 'stream$', '')

-- Returns how many plain entries the stream has. No ledger contains them before they are counted.
local function plain_entries()
  local found, after = 0, '-'
  while true do
    local page = call('XRANGE', stream, after, '+', 'COUNT', 500)
    for _, entry in ipairs(page) do
      local fields = maps.from_flat(entry[2]) -- as `was_sequenced` in tallystream.wire.codec
      if not (fields.p and tonumber(fields.q) or fields.v and tonumber(fields.d)) then
        found = found + 1
      end
      after = '(' .. entry[1]
    end
    if #page < 500 then
      return found
    end
  end
end

-- Makes the stream and its group again.
local function mend_stream()
  local plain, settled = unpack(call('HMGET', ledger, 'entries:plain', 'entries:settled'))
  local gated = tonumber(call('HGET', prefix .. 'ledger', sentinels.GATED) or '0')
  call('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')
  local info = streams.info(stream)
  local added = math.max(gated + tonumber(plain or '0') + plain_entries(), tonumber(settled or '0') + info.length)
  local last = info['last-generated-id']
  if info.length == 0 then
    last = string.format('%.0f-0', clock.milliseconds())
  end
  call('XSETID', stream, last, 'ENTRIESADDED', string.format('%.0f', added))
  local read = string.format('%.0f', added - info.length)
  call('XGROUP', 'SETID', stream, group, info.length == 0 and last or '0', 'ENTRIESREAD', read)
end

if sentinels.is_new(stream) then
  return { 'empty' }
end
local lost = sentinels.lost(stream)
if lost and lost ~= live then
  return { 'damaged', lost }
end
local mended = {}
if lost then
  local closed = call('HGET', prefix .. 'seq', '!closed')
  call('SET', live, closed and closed ~= '' and ARGV[1] .. ' closed' or ARGV[1])
  mended[1] = live
end
if sentinels.is_stream_lost(stream, call('HGET', ledger, 'entries:settled')) then
  mend_stream()
  mended[#mended + 1] = stream
end
local topic, dropped = prefix .. 'ledger', prefix .. 'dropped'
local records = call('HLEN', dropped)
if records < tonumber(call('HGET', topic, 'entries:dropped') or '0') then
  call('HSET', topic, 'entries:dropped', records) -- a rebuild finds the other dead letters again
  mended[#mended + 1] = dropped
end
if #mended > 0 then
  return { 'mended', unpack(mended) }
end
return { 'whole' }
