#!lua
-- ensure_group: creates the stream and its consumer group, at the beginning of the stream, unless entries were counted.
--
-- KEYS[1] stream   KEYS[2] the generation's ledger (hash)   KEYS[3] the topic's ledger (hash)
-- ARGV[1] group
--
-- Returns {"ready"}           the group exists; it may have existed before
--         {"missing", field}  the group is gone, and this field of the ledger shows that it has counted entries
--         {"damaged", key}    the partition has lost this key, see lib/sentinels.lua; or the stream was deleted: the
--                             ledgers have more entries than it ever had; or a later generation has not begun here
--
-- Invariant: a group is created only if no worker has counted an entry of the stream in the generation: a new group
-- would count entries twice (from the beginning of the stream) or never (from its end). Entries that decide.lua has
-- counted before the first worker name the generation, so a worker acknowledges them without counting them. Only
-- begin.lua begins a later generation, and creates its group: a worker that has read of it before a failover must not
-- create a part of it on a server that lacks it.
local sentinels = require('tallystream.storage.lua.lib.sentinels')
local streams = require('tallystream.storage.lua.lib.streams')
local call = redis.call
local OF_THE_TOPIC = {}
for _, field in ipairs({ 'appended', sentinels.GATED, 'entries:retired', 'entries:copied', 'entries:dropped' }) do
  OF_THE_TOPIC[field] = true
end

local lost = sentinels.lost(KEYS[1])
if lost then
  return { 'damaged', lost }
end
local exists = call('EXISTS', KEYS[1]) == 1
if exists and streams.group(KEYS[1], ARGV[1]) then
  return { 'ready' }
end
local settled = call('HGET', KEYS[2], 'entries:settled')
if sentinels.is_stream_lost(KEYS[1], settled) then
  return { 'damaged', KEYS[1] }
end
if KEYS[2] ~= KEYS[3] then
  for _, field in ipairs(call('HKEYS', KEYS[2])) do
    if not OF_THE_TOPIC[field] then
      return { 'missing', field }
    end
  end
elseif tonumber(settled or '0') > 0 then
  return { 'missing', 'entries:settled' }
end
local begun = string.gsub(KEYS[2], 'ledger$', 'begun')
if string.find(KEYS[2], 'g%d+:ledger$') and call('EXISTS', begun) == 0 then
  return { 'damaged', begun }
end
call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
return { 'ready' }
