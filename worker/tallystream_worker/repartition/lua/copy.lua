#!lua
-- copy: appends parts of another log's entries, each once, in the order in which they come.
--
-- KEYS[1] stream   KEYS[2] copied (hash: partition of the other log -> ID of its last entry that was copied to here)
-- KEYS[3] the log's ledger (hash)
-- ARGV[1] how many marks follow, each as: partition, ID where it must stand ("" for nowhere), ID where it stands then
-- behind them the parts, each as: its entry's millisecond, events that it brings to the ledger (0 for a plain entry,
-- which is put there when it is counted), how many arguments follow, then the fields and values of its entry
--
-- Returns {"copied"}, or {"at", partition, ID} where a mark stands elsewhere: nothing was done
--
-- Invariant: the marks move in the call that appends the parts, and in no other: what lies up to a mark is here, once.
-- An ID keeps its millisecond where that still follows on the last one; what counts is the one in the entry.
local call = redis.call
local stream, copied, ledger = KEYS[1], KEYS[2], KEYS[3]
local marks = tonumber(ARGV[1])
local moves = {}
for i = 1, marks do
  local source, from, to = ARGV[3 * i - 1], ARGV[3 * i], ARGV[3 * i + 1]
  local at = call('HGET', copied, source) or ''
  if at ~= from then
    return { 'at', source, at }
  end
  moves[#moves + 1], moves[#moves + 2] = source, to
end
for _, field in ipairs({ 'appended', 'entries:gated' }) do
  if not string.match(call('HGET', ledger, field) or '0', '^%-?%d+$') then
    error({ err = 'ERR ' .. ledger .. ' field ' .. field .. ' is not a whole number' })
  end
end
local last = 0
if call('EXISTS', stream) == 1 then
  local info = call('XINFO', 'STREAM', stream) -- an emptied stream remembers its last ID as well
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      last = tonumber(string.match(info[i + 1], '^%d+'))
    end
  end
end

-- From here on nothing fails.
local events, gated, at = 0, 0, 3 * marks + 2
while ARGV[at] do
  local count = tonumber(ARGV[at + 2])
  last = math.max(last, tonumber(ARGV[at]))
  call('XADD', stream, string.format('%.0f-*', last), unpack(ARGV, at + 3, at + 2 + count))
  if ARGV[at + 1] ~= '0' then
    events, gated = events + tonumber(ARGV[at + 1]), gated + 1
  end
  at = at + 3 + count
end
if gated > 0 then
  call('HINCRBY', ledger, 'appended', string.format('%.0f', events))
  call('HINCRBY', ledger, 'entries:gated', gated)
end
if #moves > 0 then
  call('HSET', copied, unpack(moves))
end
return { 'copied' }
