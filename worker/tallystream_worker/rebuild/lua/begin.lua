#!lua
-- begin: creates an empty generation of counters in one partition, to be counted from the stream's beginning.
--
-- KEYS[1] stream   KEYS[2] begun   KEYS[3] the generation's ledger (hash)   KEYS[4] the topic's ledger (hash)
-- KEYS[5] gone
-- ARGV[1] the generation's group
-- ARGV[2] the number of the command (see claim_turn.lua); 0: no later command is looked for
-- ARGV[3] if given: the value of the key of the live generation, to open a partition that has lost all its keys
--
-- Returns {"begun", begun, gone}   the values of these keys; the generation may have begun before
--         {"damaged", key [, type]}   the partition has lost this key (see lib/sentinels.lua), or it has this type;
--                                     nothing was changed
--         {"overtaken"}   a later command has taken the partition, a restore has closed it, or a failover has taken
--                         back that this command has taken it: nothing was changed
--
-- Invariant: the group, `begun`, `gone`, the first figures of the ledger, and the sentinels of a partition that is
-- opened are written at one moment. So a call can be repeated. From then on no entry is trimmed before the generation
-- has counted it, because its group has not read it. Entries that are trimmed later are not `gone`: the generation has
-- counted them from the stream. A process that was paused does not begin a generation that a later command has removed.
local maps = require('tallystream.storage.lua.lib.maps')
local sentinels = require('tallystream.storage.lua.lib.sentinels')
local streams = require('tallystream.storage.lua.lib.streams')
local call, format = redis.call, string.format
local stream, begun, ledger, group, outlived = KEYS[1], KEYS[2], KEYS[3], ARGV[1], KEYS[5]

-- Returns the first fields and values of the generation's ledger. Every entry up to `begun`, plain or not, is added to
-- the ledger when it is counted: see tallystream.reading.ledger.
local function first_figures(topic, gone)
  local function figure(name)
    return tonumber(topic[name] or 0)
  end
  local figures = {
    { 'appended', figure('plain') - figure('appended') },
    { 'entries:settled', gone },
    { 'entries:removed', gone - figure('entries:retired') },
    { 'entries:plain', gone - figure('entries:gated') },
  }
  local flat = {}
  for i, pair in ipairs(figures) do
    flat[2 * i - 1], flat[2 * i] = pair[1], format('%.0f', pair[2])
  end
  return flat
end

local lost = sentinels.lost(stream)
local opens = lost and ARGV[3] and sentinels.is_new(stream) and call('EXISTS', begun, outlived, ledger) == 0
if lost and not opens then
  return { 'damaged', lost }
end
if sentinels.is_stream_lost(stream) then
  return { 'damaged', stream } -- an archive may have its entries, but their producers may send some of them again
end
if call('EXISTS', begun) == 1 and call('EXISTS', outlived) == 0 then
  return { 'damaged', outlived }
end
if ARGV[2] ~= '0' and call('HGET', (string.gsub(stream, 'stream$', 'seq')), '!turn') ~= ARGV[2] then
  return { 'overtaken' }
end
local dropped = string.gsub(stream, 'stream$', 'dropped')
local kind = call('TYPE', dropped).ok
if kind ~= 'hash' and kind ~= 'none' then
  return { 'damaged', dropped, kind }
elseif call('HLEN', dropped) < tonumber(call('HGET', KEYS[4], 'entries:dropped') or '0') then
  return { 'damaged', dropped } -- without the records, dead letters that were dropped would count
end
if opens then
  sentinels.open(stream, ARGV[3])
end
if call('EXISTS', stream) == 0 then
  call('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')
  call('SET', begun, '0-0')
  call('SET', outlived, '0 ')
  call('HSET', ledger, unpack(first_figures(maps.from_flat(call('HGETALL', KEYS[4])), 0)))
elseif call('EXISTS', begun) == 0 then
  local info, topic = streams.info(stream), maps.from_flat(call('HGETALL', KEYS[4]))
  if info.length == 0 then -- then nothing is read, and the group must not look as if nothing were counted
    call('XGROUP', 'CREATE', stream, group, info['last-generated-id'], 'ENTRIESREAD', info['entries-added'])
  else
    call('XGROUP', 'CREATE', stream, group, '0')
  end
  local gone, first = info['entries-added'] - info.length, call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  call('SET', begun, info['last-generated-id'])
  call('SET', outlived, format('%.0f ', gone) .. (first and first[1] or ''))
  call('HSET', ledger, unpack(first_figures(topic, gone)))
end
return { 'begun', call('GET', begun), call('GET', outlived) }
