#!lua
-- append: writes one entry of a producer at most once, however often it is sent.
--
-- KEYS[1] stream   KEYS[2] sequences (hash: producer -> "<sequence> <stream ID>")   KEYS[3] ledger (hash)
-- ARGV[1] wire version   ARGV[2] producer's ID   ARGV[3] sequence   ARGV[4] events   ARGV[5] payload
-- ARGV[6] "1" if a WAIT follows: an entry that was written before then counts as a write of this connection, too
--
-- Returns {"appended", ID}   written now
--         {"already", ID}    written before (ID is "" if a later entry of the producer was written since)
--         {"gap", last}      the sequence does not follow `last`: the stream was rewound, or an entry is missing
--         {"closed", topic}  nothing is written here any more, and this entry never was: append it to that topic
--         {"full", limit}    the stream has as many entries as it may: counting lags
--
-- Invariant: for each producer the entries in the stream are 1, 2, 3, ... without a gap or a repeat, in order.
-- Everything is checked before the first write; the writes cannot fail once the checks have passed.
local appending = require('tallystream.storage.lua.lib.appending')
local stream, sequences, ledger = KEYS[1], KEYS[2], KEYS[3]
local producer, sequence = ARGV[2], tonumber(ARGV[3])

local last, last_id = 0, ''
local known, limit, closed = unpack(redis.call('HMGET', sequences, producer, '!limit', '!closed'))
if known then
  last, last_id = string.match(known, '^(%d+) (.+)$')
  last = tonumber(last)
end
if sequence <= last then
  if ARGV[6] == '1' then
    -- WAIT covers what its own connection wrote. Another connection wrote the entry, so write the same value again.
    redis.call('HSET', sequences, producer, known)
  end
  return { 'already', sequence == last and last_id or '' }
end
if sequence > last + 1 then
  return { 'gap', tostring(last) }
end
local refusal = appending.refusal(stream, ledger, limit, closed)
if refusal then
  return refusal
end
return {
  'appended',
  appending.append(stream, sequences, ledger, ARGV[1], producer, ARGV[3], ARGV[4], ARGV[5]),
}
