-- forget_periods: removes the keys of a period once no entry can change them any more: the state of rules (IDs, limits,
-- votes), and the buckets of windows with their leaderboards and uniques.
--
-- An event that needs state is late if its entry was received more than `accept_late` after the event's own time. A
-- bucket gets no event whose entry was received after it closed. So each period has a time until which it is kept. What
-- counts is the time of the log, not that of the clock: a period is removed only if every entry that is not counted was
-- received after that time. Workers may stop for months, and the events of the backlog still find their state.
--
-- The server's clock may be wrong for a moment, and stream IDs with it. So a period is removed only if the same was
-- true an hour before, by that clock. `forgotten` records the end of the last period that was removed, for each kind
-- and metric: no event of such a period counts by this state, because it would count as if it were the first, and
-- no such bucket is created again.
--
-- The sorted set `periods` has the members "<end> <key without the generation's prefix>"; the score is the millisecond
-- until which the key is kept. A leaderboard is removed with its bucket. The hash `forgotten` has "<kind>:<metric>" ->
-- end, and the two fields below.
local appending = require('tallystream.storage.lua.lib.appending')
local clock = require('tallystream.storage.lua.lib.clock')
local maps = require('tallystream.storage.lua.lib.maps')
local streams = require('tallystream.storage.lua.lib.streams')

local call, format = redis.call, string.format
local AGAIN = 3600000 -- milliseconds for which a period must be due
local STEP = 1000 -- periods that one call removes, in addition to as many as its batch adds
local DUE = '!due' -- field: "<milliseconds> <bound>": periods kept until before the bound were due at that time
local STATE = { limit = true, once = true, seen = true, unique = true } -- kinds without leaderboards
local EXACT = { limit = true, seen = true } -- kinds of which each recorded key exists, unless it is lost
local UNTIL = '!until' -- field: the largest score of a period that was removed

-- Returns the prefix of the keys of the generation with this ledger.
local function prefix_of(ledger_key)
  return (string.gsub(ledger_key, 'ledger$', ''))
end

-- Reads the ends of the removed periods, by kind and metric, into `planned.forgotten_ends`; adds the keys in the batch
-- whose period was removed to `planned.gone`. Raises an error if a key has another type.
local function find(planned)
  local prefix = prefix_of(planned.ledger_key)
  call('ZCARD', prefix .. 'periods')
  local ends = planned.forgotten_ends
  for kind, last in pairs(maps.from_flat(call('HGETALL', prefix .. 'forgotten'))) do
    ends[kind] = tonumber(last)
    if not ends[kind] and string.sub(kind, 1, 8) == '!former:' then
      planned.former[string.sub(kind, 9)] = last
    end
  end
  for metric in pairs(planned.former) do
    local removed = 'seen:' .. metric
    if (ends[removed] or -1) <= (ends['copies:' .. metric] or -1) then -- its IDs had another form, see former_ids.lua
      ends[removed] = nil
    end
  end
  for _, period in ipairs(planned.batch.periods) do
    local kind, finish = unpack(period)
    if finish <= (planned.forgotten_ends[kind] or -1) then
      for i = 4, #period do
        planned.gone[period[i]] = true
      end
    end
  end
end

-- Returns true if a key is registered in `periods`, although it does not exist: then it was deleted or evicted.
-- `finish` is the millisecond at which its period ends.
local function is_lost(planned, key, finish)
  local prefix = prefix_of(planned.ledger_key)
  local member = format('%.0f ', finish) .. string.sub(key, #prefix + 1)
  return call('EXISTS', key) == 0 and call('ZSCORE', prefix .. 'periods', member)
end

-- Records that no event is added to the period of a kind and metric that ends at millisecond `finish`, or to those
-- before it.
local function forget(planned, kind, finish)
  if finish > (planned.forgotten_ends[kind] or -1) then
    planned.forgotten_ends[kind] = finish
    call('HSET', prefix_of(planned.ledger_key) .. 'forgotten', kind, format('%.0f', finish))
  end
end

-- Returns the keys of ids and limits that the batch writes. If all its events are copies, it writes none, although it
-- names them in `periods`.
local function written_state(planned)
  local written = {}
  for _, hash in ipairs(planned.hashes) do
    written[hash[1]] = written[hash[1]] or #hash[2] > 0
  end
  for _, bits in ipairs(planned.bits) do
    written[bits[1]] = written[bits[1]] or #bits[2] > 0
  end
  return written
end

-- Records until when the periods of the batch are kept, except those that were removed. A key of ids or limits is
-- recorded when it is written, so that a recorded key that does not exist is lost: see `is_lost`. Buckets that events
-- are left out of count as removed: an event may be received, or counted, too late for its bucket. If the bucket is
-- open after all, because the clock is set back or `retention` is raised, reads state it as missing.
local function keep(planned)
  local prefix = prefix_of(planned.ledger_key)
  local added, first, written = {}, #prefix + 1, written_state(planned)
  for kind, finish in pairs(planned.batch.left_out) do
    forget(planned, kind, finish)
  end
  for _, periods in ipairs({ planned.batch.periods, planned.unique_periods }) do
    for _, period in ipairs(periods) do
      local finish, kept = format('%.0f ', period[2]), format('%.0f', period[3])
      local must_be_written = EXACT[string.match(period[1], '^%l+')]
      for i = 4, #period do
        if planned.left_out[period[i]] then
          forget(planned, period[1], period[2])
        elseif period[3] > 0 and not planned.gone[period[i]] and (written[period[i]] or not must_be_written) then
          local n = #added
          added[n + 1], added[n + 2] = kept, finish .. string.sub(period[i], first)
        end
      end
    end
  end
  require('tallystream.storage.lua.lib.chunks').each(call, 'ZADD', prefix .. 'periods', added, 1)
end

-- Returns the millisecond at which the first entry that is not counted was received, and its ID. Entries that are not
-- delivered yet have larger IDs than pending ones.
local function oldest_uncounted(stream, group)
  local id = call('XPENDING', stream, group)[2]
  local found = call('XRANGE', stream, id, id)[1]
  return streams.received(id, found and maps.from_flat(found[2]) or {}), id
end

-- Returns a bound of the time at which the entries from the oldest uncounted one on were received. Times rise with the
-- IDs, except if entries state an earlier time: then `!stated` has the earliest.
local function received_since(stream, group, sequences)
  local oldest, id = oldest_uncounted(stream, group)
  local last, earliest = appending.stated(sequences)
  if last and not streams.is_before(last, id) then
    return math.min(oldest, earliest)
  end
  return oldest
end

-- Plans what to remove: `ids` are pending entries of the group. Returns nil if there is nothing to do. Only reads.
local function plan(stream, group, ids, planned)
  local prefix = prefix_of(planned.ledger_key)
  local now = clock.milliseconds()
  local since, bound = string.match(call('HGET', prefix .. 'forgotten', DUE) or '', '^(%d+) (%d+)$')
  since, bound = tonumber(since), tonumber(bound)
  if since and since > now then
    return { prefix = prefix, was_ahead = true }
  end
  local oldest = tonumber(call('ZRANGE', prefix .. 'periods', 0, 0, 'WITHSCORES')[2])
  if not oldest or not ids[1] or oldest >= streams.parse_id(ids[1]) then
    return nil
  end
  local sequences = string.gsub(stream, 'stream$', 'seq')
  local left = math.min(now, received_since(stream, group, sequences))
  if oldest >= left then
    return nil
  end
  local most = STEP
  for _, periods in ipairs({ planned.batch.periods, planned.unique_periods }) do
    for _, period in ipairs(periods) do
      most = most + #period - 3
    end
  end
  return {
    prefix = prefix,
    most = most,
    due = format('%.0f %.0f', now, left),
    must_wait = since and (since > now - AGAIN or clock.is_steady(sequences, now) == false),
    bound = since and math.min(bound, left),
  }
end

-- Removes what `plan` returned.
local function write(planned)
  local prefix, last = planned.prefix, nil
  local periods, forgotten = prefix .. 'periods', prefix .. 'forgotten'
  if planned.was_ahead then -- the clock was ahead when this was written, so nothing was due
    call('HDEL', forgotten, DUE)
    return
  end
  if planned.must_wait then
    return
  end
  local removed = {}
  if planned.bound then
    local below = '(' .. format('%.0f', planned.bound)
    removed = call('ZRANGE', periods, '-inf', below, 'BYSCORE', 'LIMIT', 0, planned.most)
    last = removed[1] and call('ZSCORE', periods, removed[#removed])
  end
  for _, period in ipairs(removed) do
    local finish, key, kind = string.match(period, '^(%d+) ((%l+:[^:]+):.+)$')
    if tonumber(finish) > tonumber(call('HGET', forgotten, kind) or '0') then
      call('HSET', forgotten, kind, finish)
    end
    call('UNLINK', prefix .. key)
    local window = string.match(kind, '^%l+')
    if not STATE[window] then
      call('UNLINK', prefix .. 'top:' .. key)
      local metric, label = string.match(key, '^%l+:([^:]+):(.+)$')
      redis.pcall('SREM', prefix .. 'labels:' .. metric, window .. ':' .. label) -- the key may have another type
    end
    call('ZREM', periods, period)
  end
  if last then
    call('HSET', forgotten, UNTIL, last)
  end
  if #removed < planned.most then -- else more of them may be left
    call('HSET', forgotten, DUE, planned.due)
  end
end

return { find = find, is_lost = is_lost, keep = keep, plan = plan, write = write }
