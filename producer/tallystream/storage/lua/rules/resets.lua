-- resets: set the counters of a subject to 0: its total, its number of votes up, its buckets of every window, even
-- those that have not begun. Its votes get the amount 0, see votes.lua. Limits, IDs and uniques do not change.
--
-- A reset is a place in the log: it takes away what the entries before it have added, and nothing of the later ones. So
-- every entry before it must be counted first, and no later one: see reset.lua, and `earlier` below. A batch with
-- resets has no events.
--
-- The hash `resets` keeps the place of the last reset: "<metric>\n<subject>" -> stream ID. Dead letters of earlier
-- entries may be retried later; they ask for it.
local additions = require('tallystream.storage.lua.rules.additions')
local changes = require('tallystream.storage.lua.rules.changes')
local chunks = require('tallystream.storage.lua.lib.chunks')
local maps = require('tallystream.storage.lua.lib.maps')
local streams = require('tallystream.storage.lua.lib.streams')

local call = redis.call
local NOT_KNOWN = '9007199254740991' -- see leaderboards.lua
local PAGE = 1000 -- pending entries that `earlier` reads at a time

-- Returns the value of a counter, and rejects the subject if it is not a whole number. `nil` is 0.
local function whole(self, rule, subject, stored)
  local value = tonumber(stored or '0')
  if not value or value % 1 ~= 0 then
    changes.reject(self, rule, subject)
    return 0
  end
  return value
end

-- Takes away the value of the counter `prefix .. subject`, and returns it.
local function take_total(self, rule, prefix, subject)
  local value = whole(self, rule, subject, call('GET', prefix .. subject))
  if value ~= 0 then
    additions.add_to_total(self, rule, prefix, subject, -value)
  end
  return value
end

-- Takes away what the buckets of the metric have for the subject, and marks its periods of votes.
local function take_labels(self, rule, subject, place)
  local numbers = {}
  for nth, prefix in ipairs(rule.windows) do
    numbers[string.match(prefix, '(%l+):[^:]+:$')] = nth
  end
  for _, each in ipairs(call('SMEMBERS', changes.labels_key(self.ledger_key, rule.metric))) do
    local kind, label = string.match(each, '^(%l+):(.*)$')
    local nth = numbers[kind]
    if nth then
      local value = whole(self, rule, subject, call('HGET', rule.windows[nth] .. label, subject))
      if value ~= 0 then
        additions.add_to_window(self, rule, nth, label, subject, -value)
      end
    elseif kind == 'once' then
      local key = string.gsub(self.ledger_key, 'ledger$', 'once:') .. rule.metric .. ':' .. label .. ':' .. subject
      if call('HLEN', key) > 0 then
        self.hashes[#self.hashes + 1] = { key, { '', place } }
      end
    end
  end
end

-- Returns the key of the hash of the last resets.
local function resets_key(ledger_key)
  return (string.gsub(ledger_key, 'ledger$', 'resets'))
end

-- The part of a total that is in a sketch stays, because nothing can be taken out of a sketch: other subjects share its
-- cells. Reads of the total then state an error that covers this part (reading/counters.py). The error of the
-- leaderboard is not known any more.
local function mark_sketched(self, rule, subject)
  local sketched = tonumber(call('HGET', self.ledger_key, 'sketched@' .. rule.metric)) or 0
  local forgotten = string.gsub(self.ledger_key, 'ledger$', 'forgotten')
  if rule.top == 0 or sketched == 0 then
    return
  end
  if call('EXISTS', rule.total .. subject) == 0 or call('HEXISTS', forgotten, 'sketches:' .. rule.metric) == 1 then
    self.hashes[#self.hashes + 1] = { self.ledger_key, { 'unlisted@' .. rule.metric, NOT_KNOWN } }
  end
end

-- Plans the resets of a batch, and gathers the totals before in `planned.taken`.
local function plan(self)
  local key = resets_key(self.ledger_key)
  call('HLEN', key)
  self.taken = {}
  for i, reset in ipairs(self.batch.resets) do
    local rule, subject, place = self.rules[reset[1]], reset[2], reset[3]
    self.taken[i] = string.format('%.0f', take_total(self, rule, rule.total, subject))
    take_total(self, rule, rule.up, subject)
    mark_sketched(self, rule, subject)
    take_labels(self, rule, subject, place)
    self.hashes[#self.hashes + 1] = { key, { rule.metric .. '\n' .. subject, place } }
  end
end

-- Returns the IDs of pending entries that must be counted before a batch with these IDs: before a reset, every pending
-- entry; before other entries, the pending resets. `nil` if there are none; if there are many, only some of them.
local function earlier(stream, group, ids, is_reset)
  local first, after = ids[1], '-'
  while true do
    local page, found = call('XPENDING', stream, group, after, '(' .. first, PAGE), {}
    for _, pending in ipairs(page) do
      local entry = call('XRANGE', stream, pending[1], pending[1])[1] -- `nil` if it was trimmed
      if entry and (is_reset or maps.from_flat(entry[2]).n == '0') then
        found[#found + 1] = pending[1]
      end
    end
    if found[1] then
      return found
    elseif #page < PAGE then
      return nil
    end
    after = '(' .. page[#page][1]
  end
end

-- Sets the deltas of the subjects in `taken` to 0.
local function clear(rule, subjects, deltas, taken)
  for i, subject in ipairs(subjects) do
    if taken[rule.metric .. '\n' .. subject] then
      deltas[i] = 0
    end
  end
end

-- Takes amounts out of the batch of a dead letter, whose entry has the stream ID `source`: those of subjects that were
-- reset after this entry. votes.lua does the same for votes. Returns `false` if it is not known what the reset would
-- have taken away, because the subject has events with an ID or a limit, which decide about later events.
local function take_away(batch, ledger_key, source)
  local fields, stateful, taken = {}, {}, {}
  local function ask(rule, subject, is_stateful)
    local field = batch.rules[rule].metric .. '\n' .. subject
    fields[#fields + 1] = field
    stateful[field] = stateful[field] or is_stateful
  end
  for _, column in ipairs(batch.sums) do
    for _, subject in ipairs(column[2]) do
      ask(column[1], subject, false)
    end
  end
  for _, column in ipairs(batch.limited) do
    for _, subject in ipairs(column[3]) do
      ask(column[1], subject, true)
    end
  end
  for _, seen in ipairs(batch.seen) do
    for i = 6, #seen do
      ask(seen[1], seen[i][2], true)
    end
  end
  for i, place in ipairs(chunks.hash_values(resets_key(ledger_key), fields)) do
    if place and streams.is_before(source, place) then
      if stateful[fields[i]] then
        return false
      end
      taken[fields[i]] = true
    end
  end
  for _, column in ipairs(batch.sums) do
    clear(batch.rules[column[1]], column[2], column[3], taken)
  end
  for _, column in ipairs(batch.windows) do
    if type(column[4]) == 'table' then -- else it is a column of `sums`
      clear(batch.rules[column[1]], column[4], column[5], taken)
    end
  end
  return true
end

return { earlier = earlier, plan = plan, take_away = take_away }
