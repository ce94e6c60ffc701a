#!lua
-- apply: turns a folded batch into counts, once.
--
-- KEYS[1] stream   KEYS[2] dead stream   KEYS[3] ledger (hash)
-- ARGV[1] group    ARGV[2] batch, msgpack:
--   { ids    = { entry id, ... },
--     totals = { { key, ... }, { delta, ... } },
--     ledger = { field, "amount", ... } }
-- ARGV[3..] parked entries, each as: how many arguments follow, then the fields and values of its dead entry
--
-- Returns {"applied"}
--         {"stale", id, ...}                   not all ids are pending any more; these still are
--         {"refused", n, ...}                  the n-th totals cannot take their deltas
-- and raises NOGROUP where the stream or the group is gone: never to be taken for "already done".
--
-- Invariant: an entry is acknowledged in the call that adds its deltas or parks its bytes, and in no other.
-- Lua has no rollback, so everything that can fail is tried before the first write: the gate, every total,
-- the type of every key. `#!lua` makes the server refuse the whole call when it is out of memory, read-only
-- or cannot write its log. A crash cannot come between the writes: the server runs the call as one.
local call, tonumber, format = redis.call, tonumber, string.format
local stream, dead, ledger = KEYS[1], KEYS[2], KEYS[3]
local group = ARGV[1]
local batch = cmsgpack.unpack(ARGV[2])
local ids = batch.ids
local MAX = 9007199254740991 -- 2^53 - 1: what a double holds exactly
local NO_NUMBER = 2 * MAX + 2 -- out of bounds whatever is added
local CHUNK = 2000 -- arguments: unpack fails at 8,000

-- The gate holds for every id: XACK's total could not tell which of them counted.
local pending = {}
for i = 1, #ids do
  if #call('XPENDING', stream, group, ids[i], ids[i], 1) == 1 then
    pending[#pending + 1] = ids[i]
  end
end
if #pending < #ids then
  return { 'stale', unpack(pending) }
end

-- What the totals will be. One MGET and one MSET for thousands of keys instead of an INCRBY each: faster, and
-- an overflow is seen before anything is written.
local totals, deltas = batch.totals[1], batch.totals[2]
local writes, refused = {}, {}
for first = 1, #totals, CHUNK do
  local last = math.min(first + CHUNK - 1, #totals)
  local stored = call('MGET', unpack(totals, first, last))
  local pairs_, absent = {}, {}
  local write = 1
  for i = first, last do
    local old, new = stored[i - first + 1], deltas[i]
    if old then
      new = (tonumber(old) or NO_NUMBER) + new
    else
      absent[#absent + 1] = totals[i]
    end
    if new > MAX or new < -MAX or new % 1 ~= 0 then
      refused[#refused + 1] = tostring(i)
    end
    pairs_[write] = totals[i]
    -- Newer servers print a large number argument as 1e+15: such a one is spelled out here.
    pairs_[write + 1] = (new < 1e6 and new > -1e6) and new or format('%.0f', new)
    write = write + 2
  end
  -- MGET reads a key of another type as absent, and MSET would replace it.
  if #absent > 0 and call('EXISTS', unpack(absent)) > 0 then
    for i = first, last do
      if not stored[i - first + 1] and call('EXISTS', totals[i]) == 1 then
        refused[#refused + 1] = tostring(i)
      end
    end
  end
  writes[#writes + 1] = pairs_
end
if #refused > 0 then
  return { 'refused', unpack(refused, 1, math.min(#refused, CHUNK)) } -- the rest is found on the next try
end
call('XLEN', dead)
for i = 1, #batch.ledger, 2 do
  local old = call('HGET', ledger, batch.ledger[i])
  if old and not string.match(old, '^%-?%d+$') then
    return redis.error_reply('ERR ' .. ledger .. ' field ' .. batch.ledger[i] .. ' is not a whole number')
  end
end

-- From here on nothing fails.
call('XACK', stream, group, unpack(ids))
for _, pairs_ in ipairs(writes) do
  call('MSET', unpack(pairs_))
end
local at = 3
while ARGV[at] do
  local count = tonumber(ARGV[at])
  call('XADD', dead, '*', unpack(ARGV, at + 1, at + count))
  at = at + count + 1
end
for i = 1, #batch.ledger, 2 do
  -- Only the sum over a whole metric can leave 64 bits: then it stays as it is, and its counters go on.
  redis.pcall('HINCRBY', ledger, batch.ledger[i], batch.ledger[i + 1])
end
return { 'applied' }
