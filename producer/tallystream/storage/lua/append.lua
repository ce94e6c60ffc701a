#!lua
-- append: appends one entry of a producer at most once, however often and however late the producer sends it.
--
-- KEYS[1] stream   KEYS[2] sequences (hash: producer -> "<sequence> <stream ID>")   KEYS[3] ledger (hash)
-- ARGV[1] wire version   ARGV[2] producer's ID   ARGV[3] sequence   ARGV[4] events   ARGV[5] payload
-- ARGV[6] a stream ID that no entry of the producer precedes: of its last confirmed entry, or read before its first
-- ARGV[7] "1" if a WAIT follows: then a repeated call also writes something, so that WAIT covers the entry; else ""
-- ARGV[8] the last sequence that the server has, if the producer knows that it lost the entries between that and this
--         one, and cannot send them again; missing otherwise
--
-- Returns {"appended", ID}   the entry was appended by this call
--         {"already", ID}    an earlier call appended it (ID is "" if a later entry of the producer followed)
--         {"gap", last}      the sequence is more than `last` + 1, and ARGV[8] is not `last`: the stream was rewound
--         {"forgotten"}      the producer's record is missing, and the reaper may have removed it: nothing was done
--         {"closed", topic}  the stream is closed and does not have this entry: append it to that topic
--         {"full", limit}    the stream already has `limit` entries or more, because counting lags; nothing was done
--         {"held"}           a reset holds appends back for a moment; nothing was done
--         {"damaged", key}   the partition has lost this key (see lib/sentinels.lua); nothing was done
--
-- Invariant: for each producer the entries in the stream are 1, 2, 3, ... in order and without a repeat, also if its
-- record was removed. A sequence is left out only if the server has lost that entry for good, and the producer has read
-- so. The entries after it keep their sequences: data that has them already does not get them again. No clock decides:
-- stream IDs alone show whether a missing record may have been removed, or never existed (see lib/producers.lua).
-- All checks come before the first write; after them, the writes cannot fail.
local appending = require('tallystream.storage.lua.lib.appending')
local stream, sequences, ledger = KEYS[1], KEYS[2], KEYS[3]
local producer, sequence = ARGV[2], tonumber(ARGV[3])

local last, last_id = 0, ''
local known, limit, closed, held, begun =
  unpack(redis.call('HMGET', sequences, producer, '!limit', '!closed', '!hold', '!begun'))
if known then
  last, last_id = string.match(known, '^(%d+) (.+)$')
  last = tonumber(last)
else
  if not begun then
    -- Before "gap": the producer would take that reply for the loss of its entries, and send them again.
    local lost = require('tallystream.storage.lua.lib.sentinels').lost(stream)
    if lost then
      return { 'damaged', lost }
    end
  end
  local producers = require('tallystream.storage.lua.lib.producers')
  if producers.may_be_removed(sequences, producer, ARGV[6]) then
    return { 'forgotten' }
  end
end
if sequence <= last then
  if ARGV[7] == '1' then
    -- WAIT covers only writes of the same connection. Another one may have written the entry: write the value again.
    redis.call('HSET', sequences, producer, known)
  end
  return { 'already', sequence == last and last_id or '' }
end
if sequence > last + 1 and tonumber(ARGV[8] or '') ~= last then
  return { 'gap', tostring(last) }
end
local refusal = appending.refusal(stream, ledger, limit, closed, held, begun)
if refusal then
  return refusal
end
return {
  'appended',
  appending.append(stream, sequences, ledger, ARGV[1], producer, ARGV[3], ARGV[4], ARGV[5]),
}
