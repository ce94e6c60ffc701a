-- sentinels: tells a partition to which nothing was written from one that has lost a key (DEL, eviction, partial loss).
--
-- Three sentinels are written in one call, by the first script that appends to the partition or counts in it, and in a
-- later topic by the script that opens the partition: the field `!begun` of the sequences, the field `entries:gated` of
-- the topic's ledger, and the key of the live generation. Each proves that the other two must be there, and a consumer
-- group that has counted proves all three. Of a topic that was dropped, the sequences and the live generation stay, and
-- the sequences state that the topic is closed. Every script that appends or counts refuses if a sentinel that it needs
-- is lost: without the sequences an entry would be appended twice, without the others the counters would begin again.
--
-- Invariant: no script writes one of the three alone, if it cannot prove that the others are there.
local streams = require('tallystream.storage.lua.lib.streams')
local call = redis.call

local BEGUN = '!begun' -- field of the sequences
local GATED = 'entries:gated' -- field of the topic's ledger
local GROUP = 'tally' -- as `GROUP` in tallystream.storage.keys; later generations append '-' and their number

-- Returns the prefix of the keys of a topic's partition: `key` is the stream, the sequences, the live generation, or a
-- ledger.
local function prefix_of(key)
  return (string.gsub((string.gsub(key, '%l+$', '')), 'g%-?%d+:$', ''))
end

-- Returns true if a consumer group of the stream has counted entries, although the ledger does not exist: a script that
-- acknowledges entries writes to the ledger in the same call.
local function has_counted(prefix)
  local stream = prefix .. 'stream'
  if call('EXISTS', stream) == 0 or call('EXISTS', prefix .. 'ledger') == 1 then
    return false
  end
  for _, group in ipairs(streams.groups(stream)) do
    local counts = group.name == GROUP or string.sub(group.name, 1, #GROUP + 1) == GROUP .. '-'
    if counts and group['last-delivered-id'] ~= '0-0' and group.pending == 0 then
      return true
    end
  end
  return false
end

-- Returns the name of the key that the partition of `key` has lost, or `nil`; then whether the sentinels exist.
local function lost(key)
  local prefix = prefix_of(key)
  local begun, closed = unpack(call('HMGET', prefix .. 'seq', BEGUN, '!closed'))
  local gated, live = call('HGET', prefix .. 'ledger', GATED), call('GET', prefix .. 'live')
  if begun and live and (gated or (closed and closed ~= '')) then
    return nil, true
  end
  local is_restoring = live and string.find(live, ' restoring', 1, true) -- a restore writes this on an empty server too
  if begun or gated or (live and not is_restoring) or has_counted(prefix) then
    return prefix .. (not begun and 'seq' or not gated and 'ledger' or 'live'), false
  end
  return nil, false
end

-- Writes the sentinels; `live` is the value of the live generation, 1 if it is missing. The caller must have found that
-- no key is lost. The call can be repeated, and appends and counts nothing: so a script may fail after it.
local function open(key, live)
  local prefix = prefix_of(key)
  call('HSET', prefix .. 'seq', BEGUN, 1)
  call('HINCRBY', prefix .. 'ledger', GATED, 0)
  call('SET', prefix .. 'live', live or '1', 'NX')
end

-- Returns the name of the key that the partition of `key` has lost, or `nil`. Writes the sentinels if nothing was
-- written to the partition before. A later topic is opened by another script: without that, nothing is live in it.
local function ensure(key)
  local name, is_open = lost(key)
  if not name and not is_open and not string.find(prefix_of(key), '}:l%d+:$') then
    open(key)
  end
  return name
end

return { BEGUN = BEGUN, GATED = GATED, ensure = ensure, lost = lost, open = open }
