-- plan: finds out what a batch changes. Every script that counts calls plan, then write.
--
-- plan(batch, ledger key, decided_at) only reads, with one exception: if a metric was counted by other rules before, it
-- records the change (see parts.lua), which is right also if the batch is not written. It returns the changes to write
-- (see changes.lua). Their list `rejected` names the counters that cannot take their delta: if it is not empty, nothing
-- may be written. If their `lost` is the name of a key, this key was deleted or evicted, or has the type `lost_type`:
-- nothing may be written either. If a read of plan fails because a key has another type, mistyped.lua finds the key.
-- `decided_at` is the time of a decision in milliseconds, `nil` for a batch of appended events.
-- write(changes) only writes, and cannot fail: plan has read every key that is written, and so checked its type. This
-- includes the keys in which copy_on_write.lua saves old values.
--
-- The batch (msgpack, made by the Python module `tallystream.rules.batch`):
--   rules  = { { metric, parts = text (see parts.lua), total = key prefix, up = key prefix,
--               windows = { key prefix, ... }, limit = n or 0,
--               lengths = { bytes of the label of a bucket of each window, ... },
--               limits = key prefix, top = list length or 0, tops = { key prefix, ... },
--               quota = subjects or 0, sketch = key, bloom = 0 or 1,
--               apart = milliseconds between copies of an ID, sketched = 0 or 1 } }
--   sums   = { { rule, subjects, deltas }, ... }                      plain sums, all-time: one for each rule
--   windows = { { rule, nth window, label, subjects, deltas }, ... }  the same sums by bucket; if subjects and deltas
--             equal those of a column of `sums`, the number of that column replaces them
--   sketches = { { rule, subjects, deltas }, ... }                    sums of metrics that are not exact
--   limited = { { rule, labels, subjects, counts }, ... }             events of amount 1 of a limited metric
--   seen   = { { rule, key, key of the period before, key of the one after, first millisecond of the period,
--             { field, subject, amount, at, labels }, ... }, ... }    events with an ID, by period
--   votes  = { { rule, key, subject, { actor, amount, at, labels, record, milliseconds, number, earlier }, ... }, ... }
--             metrics with `once`; the last three are the place in the log, see records.lua. If the script appends the
--             entry: { actor, amount, at, labels, record up to the place, record after the place }
--   uniques = { { rule, key prefix, millisecond as in closes, end, { { kind:metric, millisecond }, ... },
--             { { subject, actor, ... }, ... } }, ... }   the pairs name the state that the events need
--   periods = { { kind:metric, end, millisecond until which it is kept (0: forever), key, ... }, ... }
--             keys of the state of IDs, limits and votes, and of the buckets of windows; see forget_periods.lua
--   closes = { [key] = millisecond }       keys of the buckets that the batch's events are in, and of the leaderboards
--            of these buckets, with the time at which each closes (see lib/buckets.lua); 0 means never
--   left_out = { [kind:metric] = end }     of each window and of uniques, the end of the latest bucket that an event is
--            not added to, because the bucket had closed before the server received the event; see forget_periods.lua
--   ledger = { field, events, ... }
--   resets = { { rule, subject, stream ID of the reset }, ... }   only if there are any, see resets.lua
--   outbox = key of the stream of notifications, only if alerts are declared; then rules may have `watch`, and
--   touched = { { rule, key, subject, ... }, ... }   subjects whose sums over a range are watched
-- `labels` = { label of the limit's bucket or "", label of each window's bucket }, as an index of batch.labels.
--
-- Invariant: each total depends only on the set of events applied, not on their order. Sums commute. A limit keeps the
-- number of events that arrived and accepts min(limit, number). A vote keeps the latest
-- event by (at, place in the log), an ID the earliest by (at, amount, arrival); if a better one arrives, it replaces
-- the old one in every counter. The exception is a Bloom filter of IDs: see event_ids.lua.
-- The exception is a reset, which has a place in the log: see resets.lua.
-- A bucket of a window contains the events that the server received before it closed: the fold leaves it out for later
-- ones, closed_buckets.lua for decisions. The total counts them.
-- A module that most batches do not need is required in the line that needs it, because a script makes the functions of
-- its modules again in each call.
local changes = require('tallystream.storage.lua.rules.changes')
local numbers = require('tallystream.storage.lua.lib.numbers')
local totals = require('tallystream.storage.lua.rules.totals')
local windows = require('tallystream.storage.lua.rules.windows')

local SETTLED, GATED = 'entries:settled', 'entries:gated' -- fields of a ledger

-- Returns the name of a lost ledger, or of another lost key with a sentinel; `nil` if the ledger has its sentinel. For
-- the topic's ledger, see lib/sentinels.lua. The script begin.lua writes `entries:settled` when it creates a later
-- generation. The scratch counters of an audit, which have a number below 0, have no sentinel.
local function lost_ledger(key)
  local generation = string.match(key, ':g(%-?%d+):ledger$')
  if redis.call('HEXISTS', key, generation and SETTLED or GATED) == 1 then
    return nil
  elseif not generation then
    return require('tallystream.storage.lua.lib.sentinels').lost(key)
  end
  return tonumber(generation) > 0 and key or nil
end

-- Records that metrics are counted by other rules than before, if they are.
local function check_parts(planned, decided_at)
  local rules, forgotten, names = planned.rules, string.gsub(planned.ledger_key, 'ledger$', 'forgotten'), {}
  for i, rule in ipairs(rules) do
    names[i] = '!rules:' .. rule.metric
  end
  if decided_at then
    names[2] = 'sketches:' .. rules[1].metric
  end
  local stored = #names > 0 and redis.call('HMGET', forgotten, unpack(names))
  for i, rule in ipairs(rules) do
    if stored[i] ~= rule.parts then
      local parts = require('tallystream.storage.lua.rules.parts')
      planned.lost = lost_ledger(planned.ledger_key) or parts.find_lost(planned.ledger_key)
      if planned.lost then
        return
      end
      parts.update(planned.ledger_key, rules)
      stored = redis.call('HMGET', forgotten, unpack(names))
      break
    end
  end
  planned.is_split = decided_at and stored[2] ~= false
end

-- Plans the rules with state. totals.lua and windows.lua then plan the additions that these rules gather.
local function plan_state(planned)
  local batch = planned.batch
  if #batch.periods > 0 or #batch.uniques > 0 or next(batch.left_out) then
    require('tallystream.storage.lua.rules.forget_periods').find(planned)
  end
  if #batch.seen > 0 then
    require('tallystream.storage.lua.rules.event_ids').plan(planned)
  end
  if #batch.limited > 0 or next(planned.limited) then
    require('tallystream.storage.lua.rules.limits').plan(planned)
  end
  if #batch.votes > 0 then
    require('tallystream.storage.lua.rules.votes').plan(planned)
  end
  if batch.resets then
    require('tallystream.storage.lua.rules.resets').plan(planned)
  end
end

local function plan_ledger(planned)
  local ledger = planned.batch.ledger
  for i = 1, #ledger, 2 do
    changes.add_to_ledger(planned, ledger[i], ledger[i + 1])
  end
  local generation = string.match(planned.ledger_key, ':g(%-?%d+):ledger$')
  local fields = { generation and SETTLED or GATED }
  for field in pairs(planned.ledger) do
    fields[#fields + 1] = field
  end
  local values = numbers.check_whole(planned.ledger_key, fields)
  if not values[1] and not planned.lost then
    planned.lost = lost_ledger(planned.ledger_key)
  end
end

-- Finds out whether a snapshot is being read, and checks the types of the keys that copy_on_write.lua writes then.
local function plan_copies(planned)
  local cut = string.gsub(planned.ledger_key, 'ledger$', 'cut')
  planned.cut, planned.cut_ttl = cut, redis.call('PTTL', cut)
  if planned.cut_ttl >= 0 then
    redis.call('GET', cut)
    redis.call('LLEN', cut .. ':before')
    redis.call('SCARD', cut .. ':copied')
  end
end

local function plan_batch(planned, decided_at)
  local batch = planned.batch
  check_parts(planned, decided_at)
  if decided_at then
    require('tallystream.storage.lua.rules.closed_buckets').drop(batch, decided_at)
  end
  plan_state(planned)
  totals.plan(planned)
  windows.plan(planned)
  if #batch.uniques > 0 then
    require('tallystream.storage.lua.rules.uniques').plan(planned)
  end
  if #batch.sketches > 0 or next(planned.overflow) then
    require('tallystream.storage.lua.rules.sketches').plan(planned)
  end
  if batch.outbox then
    require('tallystream.storage.lua.rules.alerts').evaluate_alerts(planned)
  end
  plan_ledger(planned)
  plan_copies(planned)
end

local function plan(batch, ledger_key, decided_at)
  local planned = changes.new(batch, ledger_key)
  local is_planned, failure = pcall(plan_batch, planned, decided_at)
  if not is_planned then
    require('tallystream.storage.lua.rules.mistyped').find(planned, failure)
  end
  return planned
end

return plan
