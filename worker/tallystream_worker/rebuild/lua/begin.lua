#!lua
-- begin: makes an empty generation of counters in one partition, to be counted from the log's beginning.
--
-- KEYS[1] stream   KEYS[2] begun   KEYS[3] the generation's ledger (hash)   KEYS[4] the log's ledger (hash)
-- ARGV[1] the generation's group
--
-- Returns {"begun", first entry's ID or "", entries that the stream no longer holds}, also where it had begun before.
--
-- Invariant: the group, the ID `begun` and the ledger's beginning are of one moment. From here on nothing is trimmed
-- that the generation has not counted, because its group has not read it.
local call = redis.call
local function fields(flat)
  local named = {}
  for i = 1, #flat, 2 do
    named[flat[i]] = flat[i + 1]
  end
  return named
end

if call('EXISTS', KEYS[1]) == 0 then
  call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
  call('SET', KEYS[2], '0-0')
elseif call('EXISTS', KEYS[2]) == 0 then
  local info = fields(call('XINFO', 'STREAM', KEYS[1]))
  local log = fields(call('HGETALL', KEYS[4]))
  local function figure(name)
    return tonumber(log[name] or 0)
  end
  local added, length = info['entries-added'], info.length
  local gone = added - length
  call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0')
  call('SET', KEYS[2], info['last-generated-id'])
  -- Each entry up to `begun` is put into the books when it is counted, whatever let it in: see tallystream.reading.ledger.
  call('HSET', KEYS[3], 'appended', string.format('%.0f', figure('plain') - figure('appended')),
    'entries:settled', string.format('%.0f', gone), 'entries:removed', string.format('%.0f', gone - figure('entries:retired')),
    'entries:plain', string.format('%.0f', gone - figure('entries:gated')))
end
local info = fields(call('XINFO', 'STREAM', KEYS[1]))
local first = call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
return { 'begun', first and first[1] or '', info['entries-added'] - info.length }
