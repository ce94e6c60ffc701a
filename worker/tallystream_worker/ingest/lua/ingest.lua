#!lua
-- ingest: appends the events of one chunk of a file as an entry, at most once, however often the file is read.
--
-- KEYS[1] stream   KEYS[2] sequences (hash: source -> "<offset> <stream ID>")   KEYS[3] ledger (hash)
-- ARGV[1] wire version   ARGV[2] source   ARGV[3] from   ARGV[4] to   ARGV[5] events   ARGV[6] payload
--
-- Returns {"appended", ID}
--         {"at", offset}      the source's offset is not `from`: nothing was written
--         {"closed", topic}   this topic is closed: nothing was written; append to the returned topic
--         {"full", limit}     the stream has reached its limit of entries: nothing was written
--         {"held"}            a reset holds appends back for a moment: nothing was written
--         {"damaged", key}    the partition has lost this key (see lib/sentinels.lua): nothing was written
--
-- Invariant: for each source the chunks in the stream adjoin, [0, a), [a, b), [b, c), ..., each once. A process that
-- reads the file again gets the offset up to which it was appended, and continues there.
-- Everything is checked before the first write; the writes cannot fail after the checks have passed.
local appending = require('tallystream.storage.lua.lib.appending')
local stream, sequences, ledger = KEYS[1], KEYS[2], KEYS[3]
local source, from, to = ARGV[2], ARGV[3], ARGV[4]

local known, limit, closed, held, begun =
  unpack(redis.call('HMGET', sequences, source, '!limit', '!closed', '!hold', '!begun'))
local refusal = not begun and appending.refusal(stream, ledger, limit, closed, held, begun)
if refusal then
  return refusal -- without the sequences, the offset below would be 0
end
local at = known and string.match(known, '^%d+') or '0'
if at ~= from then
  return { 'at', at }
end
refusal = appending.refusal(stream, ledger, limit, closed, held, true)
if refusal then
  return refusal
end
return { 'appended', appending.append(stream, sequences, ledger, ARGV[1], source, to, ARGV[5], ARGV[6]) }
