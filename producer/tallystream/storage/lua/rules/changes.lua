-- changes: what a batch changes in one partition. The rules fill one such table, write.lua writes it.

-- Returns the changes of a batch before any rule has run. `ledger_key` is the ledger of the batch's generation.
local function new(batch, ledger_key)
  local in_batch = {}
  for i = 1, #batch.expire, 2 do
    in_batch[batch.expire[i]] = true
  end
  return {
    -- What the rules read.
    batch = batch,
    rules = batch.rules,
    ledger_key = ledger_key,
    in_batch = in_batch, -- set of the keys of the buckets that the batch's events lie in

    -- What the rules tell each other.
    limited = {}, -- by key of a limit's bucket: what the events ask for, see limits.lua
    total_extra = {}, -- by prefix of the keys: what the rules with state add to totals, see additions.lua
    window_extra = {}, -- by key of the bucket: what the rules with state add to it
    overflow = {}, -- by rule: the subjects that its sketch counts, see totals.lua
    watched = {}, -- by key of the states: new values that alerts are on, see alerts.lua

    -- What the script's reply is made from.
    rejected = {}, -- metric, subject, ...: totals that cannot take their delta: then nothing may be written
    used = {}, -- what was asked of each limit
    duplicates = 0, -- events with a known ID
    voted = nil, -- whether the last vote changed anything; `nil` without votes

    -- What write.lua writes.
    strings = {}, -- { key, value, key, value, ... }, ...: counters with a key of their own
    hashes = {}, -- { key, { field, value, ... } }, ...: buckets, limits, votes, IDs
    bits = {}, -- { key, positions }, ...: Bloom filters, see event_ids.lua
    uniques = {}, -- see uniques.lua
    sketches = {}, -- see sketches.lua
    boards = {}, -- see leaderboards.lua
    alerts = {}, -- see alerts.lua
    ledger = {}, -- by field: events
  }
end

-- Adds events to a field of the ledger.
local function add_to_ledger(self, field, events)
  self.ledger[field] = (self.ledger[field] or 0) + events
end

-- Notes that the total of a subject cannot take its delta.
local function reject(self, rule, subject)
  local rejected = self.rejected
  rejected[#rejected + 1] = rule.metric
  rejected[#rejected + 1] = subject
end

return { add_to_ledger = add_to_ledger, new = new, reject = reject }
