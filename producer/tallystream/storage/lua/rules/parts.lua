-- parts: records since when each part of a rule counts. The Python module `tallystream.rules.parts` makes the parts of
-- a rule, such as "hour=UTC top=21".
--
-- The hash `forgotten` of a generation has "!rules:<metric>" -> the parts by which the metric was counted last. If a
-- batch was folded by others, the rules were changed, or a worker still folds by older ones. Then the marks below are
-- written before the batch is planned. They are right without the batch, so they stay if the batch is rejected.
--
-- A mark "<kind>:<metric>" has a millisecond that is later than all events that were counted before. The kinds are:
--   minute, hour, day, month, unique  as if the buckets before were removed: reads state them as missing
--   boards    the leaderboards of buckets that begin before lack subjects
--   limits    the number of events in the periods of a limit that begin before is too small
--   votes     totals have events that were not votes
--   sketches  a total is the sum of its key and of its estimate in the sketch
--   copies    IDs are stored in another form since then, see event_ids.lua; "!former:<metric>" has the other forms
-- The leaderboard of all time has a bound in the ledger instead, see leaderboards.lua.
--
-- Invariant: the parts are stored in the call that counts by them. So after the last event that was counted without a
-- part, the next batch with this part writes a new mark, in whatever order old and new workers count.
local chunks = require('tallystream.storage.lua.lib.chunks')

local call, format = redis.call, string.format
local AHEAD = 3600000 -- milliseconds by which the time of an event may be after that of its entry
local RULES = '!rules:'

-- Returns a millisecond that is later than the time of every event that was counted before.
local function after_counted(ledger_key)
  local clock = require('tallystream.storage.lua.lib.clock')
  local streams = require('tallystream.storage.lua.lib.streams')
  local of_generation = string.gsub(ledger_key, 'ledger$', '')
  local stream = string.gsub(of_generation, ':g%-?%d+:$', ':') .. 'stream'
  return (streams.parse_id(streams.last_id(stream)) or clock.milliseconds()) + AHEAD + 1
end

local function parse(parts)
  local found = {}
  for part, value in string.gmatch(parts, '(%l+)=(%S+)') do
    found[part] = value
  end
  return found
end

-- Returns whether a subject may have a part of its total in the sketch, and the rest in its key.
local function is_split(rule, before, now)
  if now.sketch and not before.sketch then
    return true
  end
  local grows = before.quota and (tonumber(now.quota) or math.huge) > tonumber(before.quota)
  return (grows or before.sketch ~= now.sketch) and call('EXISTS', rule.sketch) == 1
end

-- Sets the bound of the leaderboard of all time, and removes it if its subjects or values are not right any more.
local function change_board(ledger_key, rule, before, now, splits)
  local MAX = require('tallystream.storage.lua.lib.numbers').MAX
  local old, new = tonumber(before.top) or 0, tonumber(now.top) or 0
  local key, field = rule.tops[1], 'unlisted@' .. rule.metric
  local last = old > 0 and call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]
  if new == 0 or old == 0 or splits then
    call('UNLINK', key)
    call('HSET', ledger_key, field, format('%.0f', MAX))
  elseif new > old and call('ZCARD', key) >= old then
    local known = tonumber(call('HGET', ledger_key, field) or '')
    call('HSET', ledger_key, field, format('%.0f', math.max(known or tonumber(last), tonumber(last))))
  end
end

local MARKS = { limit = 'limits', minute = 'minute', hour = 'hour', day = 'day', month = 'month', unique = 'unique' }

-- Returns the marks of the parts that `now` has and `before` does not have.
local function marks_of(before, now, mark)
  local marks = {}
  for part, kind in pairs(MARKS) do
    if now[part] and now[part] ~= before[part] then
      marks[kind] = mark
    end
  end
  if (tonumber(now.top) or 0) > (tonumber(before.top) or 0) then
    marks.boards = mark
  end
  if now.once and not before.once then
    marks.votes = mark
  end
  return marks
end

-- Returns until when an event may be a copy of one whose ID is stored in the form `before.ids`, and all such forms:
-- "<form>@<millisecond> ...".
local function former_ids(forgotten, rule, before, mark)
  local WINDOWS = require('tallystream.storage.lua.rules.former_ids').WINDOWS
  local reach = mark + WINDOWS[before.ids and string.match(before.ids, '^%w+') or '31d']
  local forms = before.ids and { format('%s@%.0f', before.ids, reach) } or {}
  for form, bound in string.gmatch(call('HGET', forgotten, '!former:' .. rule.metric) or '', '([^ @]+)@(%d+)') do
    if form ~= before.ids then
      forms[#forms + 1] = form .. '@' .. bound
    end
  end
  return reach, table.concat(forms, ' ')
end

-- Stores the parts of a rule, with the marks of those that differ from `stored`. `stored` is false if the metric was
-- never counted: then nothing is lacking.
local function store(ledger_key, forgotten, rule, stored)
  if stored then
    local before, now, mark = parse(stored), parse(rule.parts), after_counted(ledger_key)
    local marks = marks_of(before, now, mark)
    local splits = is_split(rule, before, now)
    if splits then
      marks.sketches = mark
    end
    if now.ids ~= before.ids then
      local former
      marks.copies, former = former_ids(forgotten, rule, before, mark)
      call('HSET', forgotten, '!former:' .. rule.metric, former)
    end
    for kind, latest in pairs(marks) do
      local name = kind .. ':' .. rule.metric
      local known = tonumber(call('HGET', forgotten, name) or '') or latest
      call('HSET', forgotten, name, format('%.0f', math.max(known, latest)))
    end
    if before.top or now.top then
      change_board(ledger_key, rule, before, now, splits)
    end
  end
  call('HSET', forgotten, RULES .. rule.metric, rule.parts)
end

-- Stores the parts of the rules of a batch if others are stored. Returns the names of the metrics with others.
-- With `only_counted`, metrics that were never counted are left out.
local function update(ledger_key, rules, only_counted)
  local forgotten, names, changed = string.gsub(ledger_key, 'ledger$', 'forgotten'), {}, {}
  for i, rule in ipairs(rules) do
    names[i] = RULES .. rule.metric
  end
  local stored = chunks.hash_values(forgotten, names)
  for i, rule in ipairs(rules) do
    if stored[i] ~= rule.parts and (stored[i] or not only_counted) then
      store(ledger_key, forgotten, rule, stored[i])
      changed[#changed + 1] = rule.metric
    end
  end
  return changed
end

-- Returns the name of the hash `forgotten` if it was deleted or evicted, else `nil`: without it, state that was removed
-- would count again as if it had never existed. The first batch of a generation that counts an event writes the hash.
local function find_lost(ledger_key)
  local forgotten = string.gsub(ledger_key, 'ledger$', 'forgotten')
  if call('EXISTS', forgotten) == 0 and (tonumber(call('HGET', ledger_key, 'counted')) or 0) > 0 then
    return forgotten
  end
end

return { find_lost = find_lost, update = update }
