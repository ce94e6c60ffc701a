-- mistyped: finds the keys of a batch that have another type than the rules need, after a read of plan.lua has failed.
-- So the common case needs no command that checks types. This module changes no key.
--
-- A key of a metric makes the events of the metric (or of one subject) rejected, and the caller makes dead letters of
-- them. A key that all metrics share counts as lost: without it nothing can be counted.
local changes = require('tallystream.storage.lua.rules.changes')

local call = redis.call

-- Rejects the subjects of a rule whose key `prefix .. subject` has another type than a total.
local function check_totals(self, rule, prefix, subjects)
  for _, subject in ipairs(subjects) do
    changes.reject_other_type(self, rule, subject, prefix .. subject, 'string')
  end
end

local function check_bucket(self, rule, nth, label)
  changes.reject_other_type(self, rule, '', rule.windows[nth] .. label, 'hash')
  if rule.top > 0 then
    changes.reject_other_type(self, rule, '', rule.tops[nth + 1] .. label, 'zset')
  end
end

-- Checks the keys of a rule that do not depend on the events: leaderboard, sketch, labels, and states of its alerts.
local function check_rule(self, rule)
  if rule.tops[1] then
    changes.reject_other_type(self, rule, '', rule.tops[1], 'zset')
  end
  if rule.sketched == 1 or rule.quota > 0 then
    changes.reject_other_type(self, rule, '', rule.sketch, 'string')
  end
  changes.reject_other_type(self, rule, '', changes.labels_key(self.ledger_key, rule.metric), 'set')
  for _, alert in ipairs(rule.watch or {}) do
    for _, bucket in pairs(alert.buckets) do
      changes.reject_other_type(self, rule, '', bucket[1], 'hash')
    end
  end
end

-- Checks the keys of IDs, in the form of the rule and in former ones.
local function check_ids(self, rule, seen)
  for i = 2, 4 do
    changes.reject_other_type(self, rule, '', seen[i], rule.bloom == 1 and 'string' or 'hash')
  end
  local former = self.former[rule.metric] and require('tallystream.storage.lua.rules.former_ids')
  for _, form in ipairs(former and former.forms_of(self, rule) or {}) do
    for i = 6, #seen do
      for _, key in ipairs(former.keys_of(seen, form, seen[i][4])) do
        if changes.reject_other_type(self, rule, '', key, form[3] and 'string' or 'hash') then
          return
        end
      end
    end
  end
end

-- Checks the keys that a reset of a subject reads.
local function check_reset(self, rule, subject)
  check_totals(self, rule, rule.total, { subject })
  check_totals(self, rule, rule.up, { subject })
  local labels = changes.labels_key(self.ledger_key, rule.metric)
  if call('TYPE', labels).ok ~= 'set' then
    return
  end
  local once = string.gsub(self.ledger_key, 'ledger$', 'once:') .. rule.metric
  for _, each in ipairs(call('SMEMBERS', labels)) do
    local kind, label = string.match(each, '^(%l+):(.*)$')
    for nth, prefix in ipairs(rule.windows) do
      if string.match(prefix, '(%l+):[^:]+:$') == kind then
        check_bucket(self, rule, nth, label)
      end
    end
    if kind == 'once' then
      changes.reject_other_type(self, rule, subject, once .. ':' .. label .. ':' .. subject, 'hash')
    end
  end
end

-- Checks the keys of the rules with state: limits, IDs, votes and resets.
local function check_state(self)
  local batch, rules = self.batch, self.rules
  for key, asked in pairs(self.limited) do
    changes.reject_other_type(self, asked.rule, '', key, 'hash')
  end
  for _, seen in ipairs(batch.seen) do
    check_ids(self, rules[seen[1]], seen)
  end
  for _, vote in ipairs(batch.votes) do
    changes.reject_other_type(self, rules[vote[1]], vote[3], vote[2], 'hash')
  end
  for _, reset in ipairs(batch.resets or {}) do
    check_reset(self, rules[reset[1]], reset[2])
  end
end

-- Records in `lost` a key that all metrics share and that has another type.
local function check_shared(self)
  local prefix = string.gsub(self.ledger_key, 'ledger$', '')
  local shared = { [self.ledger_key] = 'hash', [prefix .. 'forgotten'] = 'hash', [prefix .. 'resets'] = 'hash' }
  shared[prefix .. 'periods'] = 'zset'
  shared[prefix .. 'cut'], shared[prefix .. 'cut:before'], shared[prefix .. 'cut:copied'] = 'string', 'list', 'set'
  if self.batch.outbox then
    shared[self.batch.outbox] = 'stream'
  end
  for key, kind in pairs(shared) do
    local found = call('TYPE', key).ok
    if found ~= 'none' and found ~= kind then
      self.lost, self.lost_type = key, found
    end
  end
end

-- Records in `rejected` and `lost` which keys have another type. Raises `failure`, the error of plan.lua, if none has.
local function find(self, failure)
  check_shared(self)
  for _, rule in ipairs(self.rules) do
    check_rule(self, rule)
  end
  check_state(self)
  for _, column in ipairs(self.batch.windows) do
    check_bucket(self, self.rules[column[1]], column[2], column[3])
  end
  for _, extra in pairs(self.window_extra) do
    check_bucket(self, extra.rule, extra.nth, extra.label)
  end
  for _, touched in ipairs(self.batch.touched or {}) do
    changes.reject_other_type(self, self.rules[touched[1]], '', touched[2], 'zset')
  end
  if not self.lost and #self.rejected == 0 then
    error(failure, 0)
  end
end

return { find = find }
