-- forget_ids: removes the IDs of a period once no event can be accepted any more that is a copy of one of them.
--
-- An event with an ID is late if its entry was received more than `accept_late` after the event's own time. So each
-- period has a time until which it is kept: entries received later have no copies that are not late. What counts is the
-- time of the log, not that of the clock: a period is removed only if every entry that is not counted was received
-- after that time. Workers may stop for months, and no copy in the backlog counts twice.
--
-- The server's clock may be wrong for a moment, and stream IDs with it. So a period is removed only if this was due an
-- hour before as well, by that clock. `forgotten` records the end of the last period that was removed, for each metric:
-- event_ids.lua counts no event of such a period or of the one after it.
local clock = require('tallystream.storage.lua.lib.clock')
local maps = require('tallystream.storage.lua.lib.maps')
local streams = require('tallystream.storage.lua.lib.streams')

local call, format = redis.call, string.format
local AGAIN = 3600000 -- milliseconds for which a period must be due
local STEP = 1000 -- periods that one call removes at most
local DUE = '!due' -- field of `forgotten`: since when the oldest period is due; no metric has this name

-- Returns the key of the periods, and the table of the ends of the removed periods, by metric. Raises an error if a key
-- has another type.
local function read(ledger_key)
  local prefix = string.gsub(ledger_key, 'ledger$', '')
  call('ZCARD', prefix .. 'periods')
  local forgotten = maps.from_flat(call('HGETALL', prefix .. 'forgotten'))
  for metric, last in pairs(forgotten) do
    forgotten[metric] = tonumber(last)
  end
  return prefix .. 'periods', forgotten
end

-- Returns the millisecond at which the first entry that is not counted was received: by its ID, or by its field `t` if
-- the clock was set back, or by its field `q` if it is a copy. Entries that are not delivered yet have larger IDs than
-- pending ones.
local function oldest_uncounted(stream, group)
  local id = call('XPENDING', stream, group)[2]
  local found = call('XRANGE', stream, id, id)[1]
  local fields = found and maps.from_flat(found[2]) or {}
  local received = streams.parse_id(id)
  received = math.min(received, tonumber(fields.t) or received)
  return fields.p == 'copy' and math.min(received, tonumber(fields.q) or received) or received
end

-- Plans what to remove: `ids` are pending entries of the group. Returns nil if nothing is due. Only reads.
local function plan(stream, group, ids, ledger_key)
  local prefix = string.gsub(ledger_key, 'ledger$', '')
  local oldest = call('ZRANGE', prefix .. 'periods', 0, 0, 'WITHSCORES')[2]
  if not oldest or not ids[1] or tonumber(oldest) >= streams.parse_id(ids[1]) then
    return nil
  end
  local now = clock.milliseconds()
  local left = math.min(now, oldest_uncounted(stream, group))
  if tonumber(oldest) >= left then
    return nil
  end
  local since = tonumber(call('HGET', prefix .. 'forgotten', DUE) or nil)
  return {
    prefix = prefix,
    now = now,
    left = left,
    is_due = since and since <= now - AGAIN,
    waits = since and since <= now,
  }
end

-- Removes what `plan` returned.
local function write(planned)
  local prefix = planned.prefix
  local forgotten = prefix .. 'forgotten'
  if not planned.is_due then
    if not planned.waits then
      call('HSET', forgotten, DUE, format('%.0f', planned.now))
    end
    return
  end
  local last = '(' .. format('%.0f', planned.left)
  for _, period in ipairs(call('ZRANGEBYSCORE', prefix .. 'periods', '-inf', last, 'LIMIT', 0, STEP)) do
    local finish, metric, label = string.match(period, '^(%d+) ([^:]+):(.+)$')
    if tonumber(finish) > tonumber(call('HGET', forgotten, metric) or '0') then
      call('HSET', forgotten, metric, finish)
    end
    call('UNLINK', prefix .. 'seen:' .. metric .. ':' .. label)
    call('ZREM', prefix .. 'periods', period)
  end
  call('HDEL', forgotten, DUE)
end

return { plan = plan, read = read, write = write }
