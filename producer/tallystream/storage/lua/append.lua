#!lua
-- append: the sequence gate. Writes one entry at most once, however often it is sent.
--
-- KEYS[1] stream   KEYS[2] sequences (hash: producer -> "<sequence> <stream id>")   KEYS[3] ledger (hash)
-- ARGV[1] wire version   ARGV[2] producer id   ARGV[3] sequence   ARGV[4] events   ARGV[5] payload
-- ARGV[6] "1" where a WAIT follows: an entry written before then counts as a write of this connection too
--
-- Fields of the sequences besides (no producer's id begins with `!`): `!limit`, the most entries that the stream may
-- have; `!closed`, the log in which this one goes on.
--
-- Returns {"appended", id}   written now
--         {"already", id}    written before (id is "" where a later entry has been written since)
--         {"gap", last}      the sequence does not follow on `last`: the stream was rewound, or an entry is missing
--         {"closed", log}    nothing is written here any more, and this entry never was: it belongs into another log
--         {"full", limit}    the stream has as many entries as it may: counting is behind
--
-- Invariant: for each producer the entries in the stream are 1, 2, 3, ... without a gap or a repeat, in order.
-- Everything is checked before the first write; the writes cannot fail once the checks have passed.
local stream, sequences, ledger = KEYS[1], KEYS[2], KEYS[3]
local producer, sequence = ARGV[2], tonumber(ARGV[3])

local last, last_id = 0, ""
local known, limit, closed = unpack(redis.call('HMGET', sequences, producer, '!limit', '!closed'))
if known then
  last, last_id = string.match(known, '^(%d+) (.+)$')
  last = tonumber(last)
end
if sequence <= last then
  if ARGV[6] == '1' then
    -- WAIT covers what its own connection wrote. The entry came by another one, so the same value is written again.
    redis.call('HSET', sequences, producer, known)
  end
  return { 'already', sequence == last and last_id or '' }
end
if sequence > last + 1 then
  return { 'gap', tostring(last) }
end
if closed then
  return { 'closed', closed }
end
if limit and redis.call('XLEN', stream) >= tonumber(limit) then
  return { 'full', limit }
end
redis.call('HGET', ledger, 'appended') -- a key of another type is an error here, before anything is written

local id = redis.call('XADD', stream, '*', 'v', ARGV[1], 'p', producer, 'q', ARGV[3], 'n', ARGV[4], 'b', ARGV[5])
redis.call('HSET', sequences, producer, ARGV[3] .. ' ' .. id)
redis.call('HINCRBY', ledger, 'appended', ARGV[4])
redis.call('HINCRBY', ledger, 'entries:gated', 1)
return { 'appended', id }
