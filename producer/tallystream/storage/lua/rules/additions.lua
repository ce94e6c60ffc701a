-- additions: gathers the deltas that the rules with state (event_ids, limits, votes) add to counters. totals.lua and
-- windows.lua plan them together with the plain sums of the batch, because each key must be written once.

-- Adds events to a field of the ledger, and to the same field with the metric's name (`field@metric`).
local function settle(self, field, rule, events)
  if events ~= 0 then
    local of_metric = field .. '@' .. rule.metric
    self.ledger[field] = (self.ledger[field] or 0) + events
    self.ledger[of_metric] = (self.ledger[of_metric] or 0) + events
  end
end

-- Adds events whose period was removed to `late`: what would decide them is not known any more.
local function settle_late(self, rule, events)
  settle(self, 'late', rule, events)
  self.forgotten = self.forgotten + events
end

-- Adds `delta` to the counter with the key `prefix .. subject`. Each prefix belongs to one rule.
local function add_to_total(self, rule, prefix, subject, delta)
  local extra = self.total_extra[prefix]
  if not extra then
    extra = { rule = rule, deltas = {} }
    self.total_extra[prefix] = extra
  end
  extra.deltas[subject] = (extra.deltas[subject] or 0) + delta
end

-- Adds `delta` to a subject in the bucket `label` of the nth window.
local function add_to_window(self, rule, nth, label, subject, delta)
  local key = rule.windows[nth] .. label
  local extra = self.window_extra[key]
  if not extra then
    extra = { rule = rule, nth = nth, label = label, deltas = {} }
    self.window_extra[key] = extra
  end
  extra.deltas[subject] = (extra.deltas[subject] or 0) + delta
end

-- Adds `delta` to a subject in one bucket of each window. `labels` = { label of the limit's bucket, label of each
-- window's bucket }.
local function add_to_windows(self, rule, labels, subject, delta)
  for nth = 1, #rule.windows do
    add_to_window(self, rule, nth, labels[nth + 1], subject, delta)
  end
end

-- Adds `delta` to the total of a subject and to one bucket of each window; or to the sketch, which has neither.
local function add(self, rule, labels, subject, delta)
  if rule.sketched == 1 then
    local total = 'total@' .. rule.metric
    self.ledger[total] = (self.ledger[total] or 0) + delta
    require('tallystream.storage.lua.rules.sketches').add_subject(self, rule, subject, delta)
  elseif delta ~= 0 then
    add_to_total(self, rule, rule.total, subject, delta)
    add_to_windows(self, rule, labels, subject, delta)
  end
end

-- Counts an amount. If the rule has a limit, the amount is gathered for limits.lua, which decides how much of it is
-- added; otherwise all of it is added.
local function count(self, rule, labels, subject, amount)
  if rule.limit == 0 then
    add(self, rule, labels, subject, amount)
    return
  end
  local key = rule.limits .. labels[1]
  local asked = self.limited[key]
  if not asked then
    asked = { rule = rule, labels = labels, amounts = {} }
    self.limited[key] = asked
  end
  asked.amounts[subject] = (asked.amounts[subject] or 0) + amount
end

-- Returns the deltas of a column of totals plus the additions to the same keys, and removes these additions.
local function merge_totals(self, prefix, subjects, deltas)
  local extra = self.total_extra[prefix]
  if not extra then
    return deltas
  end
  local added, merged = extra.deltas, {}
  for i, subject in ipairs(subjects) do
    merged[i] = deltas[i] + (added[subject] or 0)
    added[subject] = nil
  end
  return merged
end

-- Returns the additions that are left for a prefix as a column: subjects, keys and deltas.
local function other_totals(prefix, extra)
  local subjects, keys, deltas, n = {}, {}, {}, 0
  for subject, delta in pairs(extra.deltas) do
    n = n + 1
    subjects[n], keys[n], deltas[n] = subject, prefix .. subject, delta
  end
  return subjects, keys, deltas
end

-- Returns the subjects and deltas of a bucket, with the additions `extra` to the same bucket.
local function merge_bucket(subjects, deltas, extra)
  local all, merged = {}, {}
  for i, subject in ipairs(subjects) do
    all[i] = subject
    merged[i] = deltas[i] + (extra[subject] or 0)
    extra[subject] = nil
  end
  for subject, delta in pairs(extra) do
    local n = #all + 1
    all[n], merged[n] = subject, delta
  end
  return all, merged
end

return {
  add = add,
  add_to_total = add_to_total,
  add_to_window = add_to_window,
  add_to_windows = add_to_windows,
  count = count,
  merge_bucket = merge_bucket,
  merge_totals = merge_totals,
  other_totals = other_totals,
  settle = settle,
  settle_late = settle_late,
}
