-- sentinels: checks whether a partition has lost a key (DEL, eviction, loss of a node).
--
-- Three sentinels are written in one call when a partition is opened, before anything may be appended or counted there:
-- the field `!begun` of the sequences, the field `entries:gated` of the topic's ledger, and the key of the live
-- generation. The partitions of the first topic are opened before `tally:meta` is stored, and those of a later topic
-- before `tally:meta` names it as the live one. So all three must exist in the live topic. Of a topic that was dropped,
-- the sequences and the live generation stay, and the sequences state that the topic is closed. Every script that
-- appends or counts refuses if a sentinel is lost: without the sequences an entry would be appended twice, and without
-- the others the counters would begin again.
--
-- Invariant: no call writes one of the three alone, unless it has proved that the others exist. If none exists, only
-- these calls write them: one that opens the partition, and a restore, which also closes partitions of other topics.
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

-- Returns the name of the first key with a sentinel that the partition of `key` has lost, or `nil`.
local function lost(key)
  local prefix = prefix_of(key)
  local begun, closed = unpack(call('HMGET', prefix .. 'seq', BEGUN, '!closed'))
  local gated = call('HGET', prefix .. 'ledger', GATED) or (closed and closed ~= '')
  if begun and gated and call('EXISTS', prefix .. 'live') == 1 then
    return nil
  end
  return prefix .. (not begun and 'seq' or not gated and 'ledger' or 'live')
end

-- Returns whether the stream was deleted, even if there is a new one: the ledgers state more entries than the present
-- stream ever had. `settled` is the number of entries that a generation has counted.
local function is_stream_lost(stream, settled)
  local gated = tonumber(call('HGET', prefix_of(stream) .. 'ledger', GATED) or '0')
  local added = call('EXISTS', stream) == 1 and streams.info(stream)['entries-added'] or 0
  return added < math.max(gated, tonumber(settled or '0'))
end

-- Returns whether the partition of `key` has no sentinel, and no worker has counted in its stream: the partition was
-- never opened, or has lost all its keys.
local function is_new(key)
  local prefix = prefix_of(key)
  return call('HEXISTS', prefix .. 'seq', BEGUN) == 0
    and call('HEXISTS', prefix .. 'ledger', GATED) == 0
    and call('EXISTS', prefix .. 'live') == 0
    and not has_counted(prefix)
end

-- Writes the sentinels of a new partition; `live` is the value of the live generation. It appends and counts nothing.
local function open(key, live)
  local prefix = prefix_of(key)
  call('HSET', prefix .. 'seq', BEGUN, 1)
  call('HINCRBY', prefix .. 'ledger', GATED, 0)
  call('SET', prefix .. 'live', live)
end

return {
  BEGUN = BEGUN,
  GATED = GATED,
  is_new = is_new,
  is_stream_lost = is_stream_lost,
  lost = lost,
  open = open,
}
