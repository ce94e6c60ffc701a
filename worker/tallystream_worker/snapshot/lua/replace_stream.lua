#!lua
-- replace_stream: replaces what is left of a stream, its ledger and its sequences by restored ones.
--
-- KEYS[1] the restored stream   KEYS[2] its ledger   KEYS[3] its sequences   KEYS[4..6] the keys that they replace
-- ARGV[1] last ID that was copied from what is left of the stream; "" if nothing was there
--
-- Returns {"replaced"}
--         {"changed"}    something was appended since: copy that first; nothing was done
--
-- Invariant: no entry that is in the stream when this returns "replaced" is missing from what replaces it, and the
-- sequences have of each producer its last entry in the stream, before and after: so no producer sends one again.
local streams = require('tallystream.storage.lua.lib.streams')
local call = redis.call

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
