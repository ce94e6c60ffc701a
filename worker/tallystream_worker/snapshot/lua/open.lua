#!lua
-- open: fixes the moment of a snapshot, and says what is applied at it.
--
-- KEYS[1] stream   KEYS[2] cut   KEYS[3] ledger (hash)   KEYS[4] the log's ledger (hash)
-- ARGV[1] group   ARGV[2] token of this snapshot   ARGV[3] milliseconds that it may be silent   ARGV[4..] keys to copy
--
-- Returns {"busy"}                                                     another one is being taken
--         {"open", milliseconds now, last delivered, last generated, { pending id, ... }, { ledger field, value, ... },
--          { appended, plain }}                                         the log's, where its ledger is another
-- and raises NOGROUP where the group is gone.
--
-- Invariant: what is returned, and every counter as long as `cut` exists, is of the same moment: see rule_before.lua.
-- The copies are of structures that every write changes all over: sketches and their leaderboards.
local stream, cut = KEYS[1], KEYS[2]
if redis.call('EXISTS', cut) == 1 then
  return { 'busy' }
end
local delivered
for _, group in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local about = {}
  for i = 1, #group, 2 do
    about[group[i]] = group[i + 1]
  end
  if about.name == ARGV[1] then
    delivered = about['last-delivered-id']
  end
end
if not delivered then
  return { err = 'NOGROUP ' .. stream .. ' has no group ' .. ARGV[1] }
end
local generated
local stream_info = redis.call('XINFO', 'STREAM', stream)
for i = 1, #stream_info, 2 do
  if stream_info[i] == 'last-generated-id' then
    generated = stream_info[i + 1]
  end
end
local pending = {}
for i, each in ipairs(redis.call('XPENDING', stream, ARGV[1], '-', '+', 10000)) do
  pending[i] = each[1]
end
local time = redis.call('TIME')

redis.call('DEL', cut .. ':before', cut .. ':copied')
redis.call('SET', cut, ARGV[2], 'PX', ARGV[3])
for i = 4, #ARGV do
  local copy = cut .. ':copy:' .. ARGV[i]
  redis.call('DEL', copy)
  if redis.call('COPY', ARGV[i], copy) == 1 then
    redis.call('PEXPIRE', copy, 600000)
  end
end
return { 'open', string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)), delivered, generated, pending,
  redis.call('HGETALL', KEYS[3]), redis.call('HMGET', KEYS[4], 'appended', 'plain') }
