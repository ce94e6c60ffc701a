#!lua
-- trim: removes the oldest counted entries of a stream, and says how long the stream may become.
--
-- KEYS[1] stream   KEYS[2] holds (hash: holder -> stream ID)   KEYS[3] the log's ledger   KEYS[4] sequences (hash)
-- ARGV[1] group that counts   ARGV[2] milliseconds that an entry is kept, 0 for ever
-- ARGV[3] bytes that the stream should have at most, 0 for any   ARGV[4] bytes at which appends stop, 0 for never
-- ARGV[5] entries that one call removes at most   ARGV[6] bytes that the dead stream may have, 0 for any
--
-- Says in the sequences what readers show beside the lengths: `!limit`, the entries at which appends are refused, and
-- `!dead`, ARGV[6]; neither is there where there is no bound.
--
-- Returns { removed, entries, bytes, limit (entries, 0 for none), who holds the oldest entry }
--
-- Invariant: nothing is removed that a group, whatever its name, has not read or not acknowledged, or that lies above
-- a hold. Where the counting group is missing nobody knows what was counted, and nothing is removed. By MINID only:
-- MAXLEN asks nobody.
local stream, holds, ledger, sequences = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local call = redis.call

local function split(id)
  local ms, seq = string.match(id, '^(%d+)%-?(%d*)$')
  return tonumber(ms), tonumber(seq) or 0
end
local mark, holder
local function hold(id, name)
  local ms, seq = split(id)
  if not ms then
    error({ err = 'ERR ' .. holds .. ' field ' .. name .. ' is not a stream ID' })
  end
  local mark_ms, mark_seq = 0, 0
  if mark then
    mark_ms, mark_seq = split(mark)
  end
  if not mark or ms < mark_ms or (ms == mark_ms and seq < mark_seq) then
    mark, holder = id, name
  end
end

local counting = false
for _, group in ipairs(call('XINFO', 'GROUPS', stream)) do
  local named = {}
  for i = 1, #group, 2 do
    named[group[i]] = group[i + 1]
  end
  counting = counting or named.name == ARGV[1]
  hold(named['last-delivered-id'], 'group ' .. named.name)
  if named.pending > 0 then
    hold(call('XPENDING', stream, named.name)[2], 'group ' .. named.name)
  end
end
local held = call('HGETALL', holds)
for i = 1, #held, 2 do
  hold(held[i + 1], held[i])
end
call('HGET', ledger, 'entries:retired') -- a key of another type is an error here, before anything is written
call('HGET', sequences, '!limit')

local entries, bytes = call('XLEN', stream), call('MEMORY', 'USAGE', stream, 'SAMPLES', 20)
local each = entries > 0 and bytes / entries or 0
local step, removed = tonumber(ARGV[5]), 0
if counting then
  if tonumber(ARGV[2]) > 0 then
    local now = call('TIME')
    local oldest = now[1] * 1000 + math.floor(now[2] / 1000) - ARGV[2]
    local by_age = split(mark) < oldest and mark or string.format('%.0f-0', math.max(0, oldest))
    removed = call('XTRIM', stream, 'MINID', '~', by_age, 'LIMIT', step)
  end
  local excess = tonumber(ARGV[3]) > 0 and math.ceil((bytes - removed * each - ARGV[3]) / math.max(each, 1)) or 0
  if excess > 0 and removed < step then
    removed = removed + call('XTRIM', stream, 'MINID', '~', mark, 'LIMIT', math.min(excess, step - removed))
  end
  if removed > 0 then
    call('HINCRBY', ledger, 'entries:retired', removed)
  end
end

if ARGV[6] == '0' then
  call('HDEL', sequences, '!dead')
else
  call('HSET', sequences, '!dead', ARGV[6])
end
local limit, backlog = 0, tonumber(ARGV[4])
if backlog == 0 then
  call('HDEL', sequences, '!limit')
elseif entries > 0 then
  limit = math.max(1, math.floor(backlog / each))
  call('HSET', sequences, '!limit', limit)
end
return { removed, entries - removed, bytes, limit, holder or '' }
