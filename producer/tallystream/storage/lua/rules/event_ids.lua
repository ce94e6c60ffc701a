-- event_ids: an event with an ID counts once. Events with one ID are copies if each is at most `apart` (the length of
-- `ids`) after the one before; of copies, the earliest counts, in whatever order they arrive.
--
-- The IDs are kept by periods of the length `apart`, each in a hash, which is exact, or in a Bloom filter, which needs
-- less memory. So the events with one ID in one period are copies, and the record of an ID has the earliest of them and
-- the time of the latest. Two neighbouring periods have copies of each other if the earliest event in the later period
-- is at most `apart` after the latest event in the earlier one. Then the later period's event does not count.
--
-- If `ids` or `seen` of a metric is changed, its IDs are stored in another form: see former_ids.lua.
--
-- No key of IDs expires: forget_periods.lua removes a period once no entry is left that may have a copy. If an event
-- arrives nevertheless, and it is not known any more whether it is a copy, it does not count, but is added to `late`.
local additions = require('tallystream.storage.lua.rules.additions')
local chunks = require('tallystream.storage.lua.lib.chunks')
local records = require('tallystream.storage.lua.rules.records')

local call = redis.call
local FIRST = 6 -- index of the first event in an element of `seen`, see plan.lua
local BITS = chunks.SIZE / 4 -- bits that one BITFIELD sets: each takes 4 arguments

local function count_duplicate(self, rule)
  additions.settle(self, 'duplicate', rule, 1)
  self.duplicates = self.duplicates + 1
end

-- Counts the event of an ID.
local function count(self, rule, labels, subject, amount)
  if rule.limit == 0 then
    additions.settle(self, 'counted', rule, 1)
  end
  additions.count(self, rule, labels, subject, amount)
end

-- Makes an event that counted a duplicate in the ledger: it is a copy of an earlier event.
local function uncount(self, rule)
  if rule.limit == 0 then
    additions.settle(self, 'counted', rule, -1)
  end
  count_duplicate(self, rule)
end

-- Plans events with an ID by a Bloom filter: an approximation that takes a few new events for duplicates. The first
-- event of an ID that arrives in a period or its neighbours counts, whatever its time. So this is the only rule whose
-- totals depend on the order of the events; the documentation of its setting states it.
local function filter(self, rule, seen, is_former)
  local bloom = require('tallystream.storage.lua.rules.bloom')
  local keys, set = {}, {}
  for i = 2, 4 do
    if i == 2 or call('EXISTS', seen[i]) == 1 then
      keys[#keys + 1] = seen[i]
    end
  end
  local known, before, after = self.ids[seen[2]], self.ids[seen[3]], self.ids[seen[4]]
  for i = FIRST, #seen do
    local field, subject, amount, at, labels = unpack(seen[i])
    local positions = bloom.positions(field)
    local found = known[field] or (before and before[field]) or (after and after[field])
    for _, key in ipairs(keys) do
      found = found or bloom.contains(key, positions)
    end
    found = found or (is_former and is_former(field, at))
    if found then
      count_duplicate(self, rule)
    else
      known[field] = true
      for _, position in ipairs(positions) do
        set[#set + 1] = position
      end
      count(self, rule, self.batch.labels[labels], subject, amount)
    end
  end
  self.bits[#self.bits + 1] = { seen[2], set }
end

-- Returns a function that returns the record of the nth field in the hash `key`: as this batch leaves it, or the
-- stored one.
local function lookup(self, key, fields)
  local planned = self.ids[key]
  local stored = call('HLEN', key) > 0 and chunks.hash_values(key, fields)
  return function(n)
    return planned and planned[fields[n]] or (stored and stored[n])
  end
end

-- Returns whether an event counts instead of an older one with the same ID: it is earlier, or as early with a smaller
-- amount, or equal and received while more of its buckets were open (each "-" in the labels is a bucket that was not).
local function is_earlier(at, amount, labels, old_at, old_amount, old_labels)
  if at ~= old_at then
    return at < old_at
  end
  return amount < old_amount or (amount == old_amount and #labels > #old_labels)
end

-- Plans one event of an ID. `old`, `earlier` and `later` are the records of its period, of the one before and of the
-- one after, if there are any. Returns the new record of its period.
local function plan_event(self, rule, event, old, earlier, later)
  local _, subject, amount, at, number = unpack(event)
  local labels, apart = self.batch.labels[number], rule.apart
  local reach = earlier and records.latest(earlier) + apart or -1 -- events up to this time are copies of earlier ones
  local first, last, text = at, at, labels.text
  local last_before = -math.huge
  if not old then
    if at <= reach then
      count_duplicate(self, rule)
    else
      count(self, rule, labels, subject, amount)
    end
  else
    local old_at, old_last, old_amount, old_labels = records.parse_id(old)
    last, last_before = math.max(at, old_last), old_last
    count_duplicate(self, rule)
    if is_earlier(at, amount, labels.text, old_at, old_amount, old_labels) then
      if old_at > reach then
        additions.count(self, rule, records.split_labels(old_labels, rule), subject, -old_amount)
        if at > reach then
          additions.count(self, rule, labels, subject, amount)
        else
          uncount(self, rule)
        end
      end
    else
      first, amount, text = old_at, old_amount, old_labels
    end
  end
  if later and last > last_before then
    local later_at, _, later_amount, later_labels = records.parse_id(later)
    if later_at > last_before + apart and later_at <= last + apart then
      additions.count(self, rule, records.split_labels(later_labels, rule), subject, -later_amount)
      uncount(self, rule)
    end
  end
  return records.build_id(first, last, amount, text)
end

-- Records in `lost` if one of the three periods of an element of `seen` was deleted or evicted: without it, copies
-- would count.
local function find_lost(self, rule, seen)
  local is_lost = require('tallystream.storage.lua.rules.forget_periods').is_lost
  for i = 2, 4 do
    local finish = seen[5] + (i == 2 and rule.apart or i == 3 and 0 or 2 * rule.apart)
    if is_lost(self, seen[i], finish) then
      self.lost = seen[i]
    end
  end
end

-- Plans events with an ID by hashes. A copy of an event whose ID is stored in another form leaves no record.
local function identify(self, rule, seen, is_former)
  local fields, writes = {}, {}
  for i = FIRST, #seen do
    fields[i - FIRST + 1] = seen[i][1]
  end
  local own, before, after = lookup(self, seen[2], fields), lookup(self, seen[3], fields), lookup(self, seen[4], fields)
  local known = self.ids[seen[2]]
  for n, field in ipairs(fields) do
    local event = seen[n + FIRST - 1]
    if is_former and is_former(field, event[4]) then
      count_duplicate(self, rule)
    else
      known[field] = plan_event(self, rule, event, own(n), before(n), after(n))
    end
  end
  for field, record in pairs(known) do
    writes[#writes + 1] = field
    writes[#writes + 1] = record
  end
  self.hashes[#self.hashes + 1] = { seen[2], writes }
end

local function plan(self)
  for _, seen in ipairs(self.batch.seen) do
    local rule = self.rules[seen[1]]
    -- The events of the first period that was not removed may be copies of events in the last one that was.
    if seen[5] <= (self.forgotten_ends['seen:' .. rule.metric] or -1) then
      additions.settle_late(self, rule, #seen - FIRST + 1)
      self.gone[seen[2]] = true
    else
      find_lost(self, rule, seen)
      self.ids[seen[2]] = self.ids[seen[2]] or {}
      local remember = rule.bloom == 1 and filter or identify
      local former = self.former[rule.metric] and require('tallystream.storage.lua.rules.former_ids')
      remember(self, rule, seen, former and former.finder(self, rule, seen))
    end
  end
end

-- Sets the bits of the Bloom filters; write.lua writes the hashes.
local function write(self)
  for _, bits in ipairs(self.bits) do
    local key, positions = bits[1], bits[2]
    for first = 1, #positions, BITS do
      local sets = {}
      for n = first, math.min(first + BITS - 1, #positions) do
        local at = 4 * (n - first)
        sets[at + 1], sets[at + 2], sets[at + 3], sets[at + 4] = 'SET', 'u1', positions[n], '1'
      end
      call('BITFIELD', key, unpack(sets))
    end
  end
end

return { plan = plan, write = write }
