-- totals: plans the counters with one key each: the plain sums of the batch, and the additions of the rules with state.
--
-- One MGET and one MSET replace thousands of INCRBY calls: this is faster, and an overflow is found before anything is
-- written. Each key is read once here and written once by write.lua.
local changes = require('tallystream.storage.lua.rules.changes')
local chunks = require('tallystream.storage.lua.lib.chunks')
local numbers = require('tallystream.storage.lua.lib.numbers')

-- Rejects the subjects whose keys are not strings: MGET reads such a key as absent, and MSET would overwrite it.
local function reject_other_types(self, rule, subjects, keys, absent)
  local call, names = redis.call, {}
  for i = 1, #absent do
    names[i] = keys[absent[i]]
  end
  if #absent > 0 and call('EXISTS', unpack(names)) > 0 then
    for i, index in ipairs(absent) do
      changes.reject_other_type(self, rule, subjects[index], names[i], 'string')
    end
  end
end

-- Returns how many more subjects may get an exact counter. A sketch without the mark `sketches` (see parts.lua) is made
-- only after as many subjects as the quota have one. So if the number of these subjects was deleted, there is no room:
-- a subject in the sketch never gets an exact counter that lacks its earlier events.
local function room_for(self, rule, field)
  local known = redis.call('HGET', self.ledger_key, field)
  if not known and redis.call('EXISTS', rule.sketch) == 1 then
    local forgotten = string.gsub(self.ledger_key, 'ledger$', 'forgotten')
    if redis.call('HEXISTS', forgotten, 'sketches:' .. rule.metric) == 0 then
      return 0
    end
  end
  return rule.quota - tonumber(known or '0') - (self.ledger[field] or 0)
end

-- Plans one column: adds `deltas[i]` to the key `keys[i]`, which is `prefix .. subjects[i]`.
local function plan_column(self, rule, prefix, subjects, keys, deltas)
  local call, format, tonumber = redis.call, string.format, tonumber
  local CHUNK, MAX, OUT_OF_RANGE = chunks.SIZE, numbers.MAX, numbers.OUT_OF_RANGE
  local is_total = prefix == rule.total -- otherwise the number of votes up: no leaderboard, alert or quota
  local leaderboards = is_total and rule.top > 0 and require('tallystream.storage.lua.rules.leaderboards')
  local board = leaderboards and leaderboards.open(self, rule, rule.tops[1], 0)
  local alerts = is_total and rule.watch and require('tallystream.storage.lua.rules.alerts')
  local room = math.huge
  local subjects_field = 'subjects@' .. rule.metric
  if is_total and rule.quota > 0 then
    room = room_for(self, rule, subjects_field)
  end
  local sum, fresh = 0, 0
  for first = 1, #keys, CHUNK do
    local last = math.min(first + CHUNK - 1, #keys)
    local stored = call('MGET', unpack(keys, first, last))
    local writes, absent, at = {}, {}, 1
    for i = first, last do
      local delta = deltas[i]
      local old, new = stored[i - first + 1], delta
      local exact = true
      if old then
        new = (tonumber(old) or OUT_OF_RANGE) + delta
      else
        absent[#absent + 1] = i
        exact = fresh < room
      end
      sum = sum + delta
      if not exact then
        require('tallystream.storage.lua.rules.sketches').add_subject(self, rule, subjects[i], delta)
      else
        if not old then
          fresh = fresh + 1
        end
        if new > MAX or new < -MAX or new % 1 ~= 0 then
          changes.reject(self, rule, subjects[i])
        end
        writes[at] = keys[i]
        writes[at + 1] = (new < 1e6 and new > -1e6) and new or format('%.0f', new) -- numbers.number_string, inlined
        at = at + 2
        if board then
          leaderboards.enter(self, rule, board, subjects[i], new, delta)
        end
        if alerts then
          alerts.check_alert(self, rule, 0, '', subjects[i], new)
        end
      end
    end
    reject_other_types(self, rule, subjects, keys, absent)
    self.strings[#self.strings + 1] = writes
  end
  if is_total then
    changes.add_to_ledger(self, 'total@' .. rule.metric, sum)
    if rule.quota > 0 and fresh > 0 then
      changes.add_to_ledger(self, subjects_field, fresh)
    end
  end
end

-- Plans the plain sums together with the additions of the rules with state. Must run after event_ids, limits and votes.
local function plan(self)
  local additions = next(self.total_extra) and require('tallystream.storage.lua.rules.additions')
  for _, column in ipairs(self.batch.sums) do
    local rule, subjects, deltas = self.rules[column[1]], column[2], column[3]
    local keys, prefix = {}, rule.total
    for i = 1, #subjects do
      keys[i] = prefix .. subjects[i]
    end
    if additions then
      deltas = additions.merge_totals(self, prefix, subjects, deltas)
    end
    plan_column(self, rule, prefix, subjects, keys, deltas)
  end
  for prefix, extra in pairs(self.total_extra) do
    if next(extra.deltas) then
      plan_column(self, extra.rule, prefix, additions.other_totals(prefix, extra))
    end
  end
end

return { plan = plan }
