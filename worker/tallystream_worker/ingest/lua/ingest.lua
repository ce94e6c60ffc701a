#!lua
-- ingest: the offset gate. Appends the events of one stretch of a file at most once, however often it is read.
--
-- KEYS[1] stream   KEYS[2] sequences (hash: source -> "<offset> <stream id>")   KEYS[3] ledger (hash)
-- ARGV[1] wire version   ARGV[2] source   ARGV[3] from   ARGV[4] to   ARGV[5] events   ARGV[6] payload
--
-- Returns {"appended", id}
--         {"at", offset}    the source stands at `offset`, which is not `from`: nothing was written
--         {"closed", log}   nothing is written here any more: what follows belongs into another log
--         {"full", limit}   the stream has as many entries as it may: nothing was written
--
-- Invariant: for each source the stretches in the stream adjoin, [0, a), [a, b), [b, c), ..., each once. Whoever
-- reads the file again is told how far it is counted, and goes on from there.
-- Everything is checked before the first write; the writes cannot fail once the checks have passed.
local stream, sequences, ledger = KEYS[1], KEYS[2], KEYS[3]
local known, limit, closed = unpack(redis.call('HMGET', sequences, ARGV[2], '!limit', '!closed'))
local at = known and string.match(known, '^%d+') or '0'
if at ~= ARGV[3] then
  return { 'at', at }
end
if closed then
  return { 'closed', closed }
end
if limit and redis.call('XLEN', stream) >= tonumber(limit) then
  return { 'full', limit }
end
redis.call('HGET', ledger, 'appended') -- a key of another type is an error here, before anything is written

local id = redis.call('XADD', stream, '*', 'v', ARGV[1], 'p', ARGV[2], 'q', ARGV[4], 'n', ARGV[5], 'b', ARGV[6])
redis.call('HSET', sequences, ARGV[2], ARGV[4] .. ' ' .. id)
redis.call('HINCRBY', ledger, 'appended', ARGV[5])
redis.call('HINCRBY', ledger, 'entries:gated', 1)
return { 'appended', id }
