-- limits: at most `limit` events of a subject count in a period. A hash keeps the number of events that arrived, and
-- min(limit, number) of them count: so the order of the events does not matter. forget_periods.lua removes the hash.
local additions = require('tallystream.storage.lua.rules.additions')
local chunks = require('tallystream.storage.lua.lib.chunks')
local numbers = require('tallystream.storage.lua.lib.numbers')

local min, tonumber = math.min, tonumber
local number_string = numbers.number_string

-- Records in `lost` if the bucket with this key was deleted or evicted: without it, the limit would begin again.
local function find_lost(self, key)
  for _, period in ipairs(self.batch.periods) do
    for i = 4, #period do
      if period[i] == key and require('tallystream.storage.lua.rules.forget_periods').is_lost(self, key, period[2]) then
        self.lost = key
      end
    end
  end
end

-- Plans one bucket of a limit: `key` is its hash, `asked` has the amounts of the new events by subject.
local function plan_bucket(self, key, asked)
  local rule, labels, amounts = asked.rule, asked.labels, asked.amounts
  local subjects, writes = {}, {}
  for subject in pairs(amounts) do
    subjects[#subjects + 1] = subject
  end
  if self.gone[key] then
    for _, amount in pairs(amounts) do
      additions.settle_late(self, rule, amount)
    end
    return
  end
  if redis.call('EXISTS', key) == 0 then
    find_lost(self, key)
  end
  local stored = chunks.hash_values(key, subjects)
  for i, subject in ipairs(subjects) do
    local amount = amounts[subject]
    local old = tonumber(stored[i] or '0')
    local new = old + amount
    local accepted = min(rule.limit, new) - min(rule.limit, old)
    writes[2 * i - 1] = subject
    writes[2 * i] = number_string(new)
    additions.settle(self, 'counted', rule, accepted)
    additions.settle(self, 'rejected:limit', rule, amount - accepted)
    additions.add(self, rule, labels, subject, accepted)
    self.used[key] = new
  end
  self.hashes[#self.hashes + 1] = { key, writes }
end

-- Must run after event_ids.plan, which also adds to `limited`.
local function plan(self)
  for _, column in ipairs(self.batch.limited) do
    local rule, labels = self.rules[column[1]], self.batch.labels[column[2]]
    for i, subject in ipairs(column[3]) do
      additions.count(self, rule, labels, subject, column[4][i])
    end
  end
  for key, asked in pairs(self.limited) do
    plan_bucket(self, key, asked)
  end
end

return { plan = plan }
