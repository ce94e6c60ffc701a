-- windows: plans the sums of a metric by window (minute, hour, day, month): one hash for each bucket, with one field
-- for each subject.
local buckets = require('tallystream.storage.lua.lib.buckets')
local changes = require('tallystream.storage.lua.rules.changes')
local chunks = require('tallystream.storage.lua.lib.chunks')
local numbers = require('tallystream.storage.lua.lib.numbers')

-- Plans one bucket: adds `deltas[i]` to the field `subjects[i]`.
local function plan_bucket(self, rule, nth, label, subjects, deltas)
  local call, format, tonumber = redis.call, string.format, tonumber
  local CHUNK, MAX, OUT_OF_RANGE = chunks.SIZE, numbers.MAX, numbers.OUT_OF_RANGE
  local key = rule.windows[nth] .. label
  local leaderboards = rule.top > 0 and require('tallystream.storage.lua.rules.leaderboards')
  local board = leaderboards and leaderboards.open(self, rule, rule.tops[nth + 1] .. label, nth)
  local overflow = self.overflow[rule] and self.overflow[rule].known -- these subjects get no fields in buckets
  local alerts = rule.watch and require('tallystream.storage.lua.rules.alerts')
  local is_known = false
  for first = 1, #subjects, CHUNK do
    local last = math.min(first + CHUNK - 1, #subjects)
    local stored = call('HMGET', key, unpack(subjects, first, last))
    local writes, at = {}, 1
    for i = first, last do
      local subject, delta = subjects[i], deltas[i]
      local old, new = stored[i - first + 1], delta
      if old then
        is_known = true
        new = (tonumber(old) or OUT_OF_RANGE) + delta
      end
      if new > MAX or new < -MAX or new % 1 ~= 0 then
        changes.reject(self, rule, subject)
      end
      if not (overflow and overflow[subject]) then
        writes[at] = subject
        writes[at + 1] = (new < 1e6 and new > -1e6) and new or format('%.0f', new) -- numbers.number_string, inlined
        at = at + 2
        if board then
          leaderboards.enter(self, rule, board, subject, new, delta)
        end
        if alerts then
          alerts.check_alert(self, rule, nth, label, subject, new)
        end
      end
    end
    self.hashes[#self.hashes + 1] = { key, writes }
  end
  if not is_known then -- the bucket may be new
    changes.add_label(self, rule.metric, string.match(rule.windows[nth], '(%l+):[^:]+:$') .. ':' .. label)
  end
end

-- Plans the plain sums together with the additions of the rules with state. Must run after totals.plan, which finds
-- the subjects beyond a quota.
local function plan(self)
  local sums, extras = self.batch.sums, self.window_extra
  local additions = next(extras) and require('tallystream.storage.lua.rules.additions')
  local closes = self.batch.closes
  for _, column in ipairs(self.batch.windows) do
    local rule, nth, label, subjects, deltas = self.rules[column[1]], unpack(column, 2)
    if type(subjects) == 'number' then -- the same column as that of the totals
      subjects, deltas = sums[subjects][2], sums[subjects][3]
    end
    local key = rule.windows[nth] .. label
    if extras[key] then
      subjects, deltas = additions.merge_bucket(subjects, deltas, extras[key].deltas)
      extras[key] = nil
    end
    if not self.gone[key] and not buckets.leave_out(self, key, closes[key]) then
      plan_bucket(self, rule, nth, label, subjects, deltas)
    end
  end
  for key, extra in pairs(extras) do
    -- A vote that is taken out of a bucket that was removed must not create the bucket again.
    local is_open = closes[key] and not self.gone[key] and not buckets.leave_out(self, key, closes[key])
    if is_open or redis.call('EXISTS', key) == 1 then
      local subjects, deltas = additions.merge_bucket({}, {}, extra.deltas)
      plan_bucket(self, extra.rule, extra.nth, extra.label, subjects, deltas)
    end
  end
end

return { plan = plan }
