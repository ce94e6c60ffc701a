-- changes: a table of everything that a batch changes in one partition. The rules fill it, and write.lua writes it.

local clock = require('tallystream.storage.lua.lib.clock')

-- Returns an empty table of changes for a batch. `ledger_key` is the key of the ledger of the batch's generation.
local function new(batch, ledger_key)
  return {
    -- Read by the rules.
    batch = batch,
    rules = batch.rules,
    ledger_key = ledger_key,
    now = clock.milliseconds(),

    -- Passed from one rule to another.
    ids = {}, -- by key of a period: the records of the IDs that the batch changes, see event_ids.lua
    limited = {}, -- by key of a limit's bucket: events that arrived, see limits.lua
    total_extra = {}, -- by prefix of the keys: additions to totals by the rules with state, see additions.lua
    window_extra = {}, -- by key of the bucket: additions to it by the rules with state
    overflow = {}, -- by rule: the subjects that its sketch counts, see totals.lua
    forgotten_ends = {}, -- by kind and metric: the end of the last period that was removed, see forget_periods.lua
    former = {}, -- by metric: other forms in which its IDs are stored, see event_ids.lua
    gone = {}, -- by key of a period: true if it was removed
    left_out = {}, -- by key or prefix of a bucket: true if an event is not added to it, see lib/buckets.lua
    is_steady = nil, -- whether the clock has advanced steadily for an hour, see lib/buckets.lua
    watched = {}, -- by key of the states: new values of counters with alerts, see alerts.lua

    -- Used for the script's reply.
    lost = nil, -- name of a key that was deleted, evicted or replaced; then nothing may be written
    lost_type = nil, -- the type that this key has instead of the right one; `nil` if it does not exist
    rejected = {}, -- metric, subject, reason, ...: counters that cannot take their delta (see rejection.lua); if any,
    -- nothing may be written
    used = {}, -- by key of a limit's bucket: all events that arrived so far of one of its subjects in the batch
    duplicates = 0, -- events whose ID was counted before
    forgotten = 0, -- events of periods that were removed, see forget_periods.lua
    taken = nil, -- by number of the reset: the total before it, see resets.lua
    voted = nil, -- whether the last vote changed anything; `nil` without votes
    cut = nil, -- the key that exists while a snapshot is being read, see copy_on_write.lua
    cut_ttl = nil, -- its time to live in milliseconds; below 0 if no snapshot is being read
    is_split = nil, -- whether the total of the decided event may be partly in the sketch, see parts.lua
    unplaced = nil, -- the vote of an entry that has no stream ID yet, see votes.lua

    -- Written by write.lua.
    strings = {}, -- { key, value, key, value, ... }, ...: counters with one key each
    hashes = {}, -- { key, { field, value, ... } }, ...: buckets, limits, votes, IDs
    labels = {}, -- { metric, label, ... }: buckets and periods of votes that may be new, see resets.lua
    bits = {}, -- { key, positions }, ...: Bloom filters, see event_ids.lua
    uniques = {}, -- see uniques.lua
    unique_periods = {}, -- their keys, as in the batch's `periods`
    sketches = {}, -- see sketches.lua
    boards = {}, -- see leaderboards.lua
    bounds = {}, -- by ledger field: a bound of the values of subjects that leaderboards do not list
    alerts = {}, -- see alerts.lua
    ledger = {}, -- by field: events
  }
end

-- Adds events to a field of the ledger.
local function add_to_ledger(self, field, events)
  self.ledger[field] = (self.ledger[field] or 0) + events
end

-- Returns the key of the set of labels of a metric: "<window>:<label>" of each bucket of a window, "once:<label>" of
-- each period of votes. With them a reset finds every bucket of a subject.
local function labels_key(ledger_key, metric)
  return (string.gsub(ledger_key, 'ledger$', 'labels:')) .. metric
end

-- Records that a bucket or period of a metric may be new.
local function add_label(self, metric, label)
  redis.call('SCARD', labels_key(self.ledger_key, metric)) -- a key of another type is an error here
  local labels = self.labels
  labels[#labels + 1] = metric
  labels[#labels + 1] = label
end

-- Records that a counter of a subject cannot take its delta: its value is not a whole number, or would become too
-- large. Another reason may be given; with the subject '', no event of the metric can be counted.
local function reject(self, rule, subject, reason)
  local rejected = self.rejected
  local n = #rejected
  rejected[n + 1], rejected[n + 2], rejected[n + 3] = rule.metric, subject, reason or ''
end

-- Rejects a subject (or '', all subjects) of a rule if `key` exists and has another type than `kind`. Returns true if
-- it has.
local function reject_other_type(self, rule, subject, key, kind)
  local found = redis.call('TYPE', key).ok
  if found ~= 'none' and found ~= kind then
    reject(self, rule, subject, 'a key has the type ' .. found .. ': ' .. key)
    return true
  end
end

return {
  add_label = add_label,
  add_to_ledger = add_to_ledger,
  labels_key = labels_key,
  new = new,
  reject = reject,
  reject_other_type = reject_other_type,
}
