#!lua
-- replace_stream: replaces a stream, its ledger and its sequences by restored ones.
--
-- KEYS[1] the restored stream   KEYS[2] its ledger   KEYS[3] its sequences   KEYS[4..6] the keys that they replace
-- KEYS[7] live generation
-- ARGV[1] last ID of the stream that was copied to the restored one; "" if the stream did not exist
-- ARGV[2] the value of KEYS[7] while this restore may write
--
-- Returns {"replaced"}
--         {"changed"}    an entry was appended since: copy it first; nothing was changed
--         {"overtaken"}  another restore has taken over: nothing was changed
--
-- Invariant: the restored stream has every entry after the snapshot of the stream that it replaces. The sequences have
-- the last entry of each producer in the stream, before and after, so no producer appends an entry twice.
local streams = require('tallystream.storage.lua.lib.streams')
local call = redis.call

if call('GET', KEYS[7]) ~= ARGV[2] then
  return { 'overtaken' }
end
if streams.last_id(KEYS[4]) ~= ARGV[1] then
  return { 'changed' }
end
for i = 1, 3 do
  if call('EXISTS', KEYS[i]) == 1 then
    call('RENAME', KEYS[i], KEYS[i + 3])
  else
    call('DEL', KEYS[i + 3])
  end
end
return { 'replaced' }
