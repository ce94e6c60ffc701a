-- votes: for each actor, only the latest event in a period counts for a subject; of events with the same time, the one
-- whose place in the log is later. In the ledger, the first event of an actor is counted and the others are rejected,
-- although a later one replaces the amount of the vote. If the votes are by period, forget_periods.lua removes them.
--
-- The field '' of the hash (no actor has this name) is the stream ID of the subject's last reset, or 0-0. A vote whose
-- place is before the reset has the amount 0, whatever its record states: so a reset writes one field, and not one for
-- each actor.
local additions = require('tallystream.storage.lua.rules.additions')
local changes = require('tallystream.storage.lua.rules.changes')
local chunks = require('tallystream.storage.lua.lib.chunks')
local records = require('tallystream.storage.lua.rules.records')
local streams = require('tallystream.storage.lua.lib.streams')

-- Returns whether a vote is later in the log than the vote with the place `known`, which has the same time. A vote that
-- `decide` appends in this call has no place yet: it is later than every other.
local function is_later(vote, known)
  if not vote[8] then
    return true
  end
  local milliseconds, number, earlier = records.parse_place(known)
  if vote[6] ~= milliseconds then
    return vote[6] > milliseconds
  end
  if vote[7] ~= number then
    return vote[7] > number
  end
  return vote[8] > earlier
end

-- Returns whether a vote with this time and place was taken away by the reset with the stream ID `reset` (`false` for
-- none). `milliseconds` is `nil` if the place is not known yet, because `decide` appends the vote in this call.
local function is_taken(at, milliseconds, number, reset)
  return reset and milliseconds and streams.is_before(string.format('%.0f-%.0f', at + milliseconds, number), reset)
end

-- Records the label of a period that has no votes yet. Returns the last reset of the subject, or 0-0. There may be one:
-- a dead letter of an entry before it may be retried.
local function begin_period(self, rule, key, subject)
  local prefix = string.gsub(self.ledger_key, 'ledger$', '')
  local label = string.sub(key, #prefix + #rule.metric + 7, -#subject - 2) -- after `once:` and the metric
  changes.add_label(self, rule.metric, 'once:' .. label)
  return redis.call('HGET', prefix .. 'resets', rule.metric .. '\n' .. subject) or '0-0'
end

-- Plans the votes for one subject in one period; plan.lua describes an element of `votes`.
local function plan_subject(self, vote)
  local rule, key, subject = self.rules[vote[1]], vote[2], vote[3]
  if self.gone[key] then
    additions.settle_late(self, rule, #vote - 3)
    return
  end
  local actors = {}
  for i = 4, #vote do
    actors[i - 3] = vote[i][1]
  end
  actors[#actors + 1] = ''
  local stored, known, writes = chunks.hash_values(key, actors), {}, {}
  local reset = stored[#actors]
  if not reset then
    reset = begin_period(self, rule, key, subject)
    known[''] = reset
  end
  reset = reset ~= '0-0' and reset
  local windowed, score, up, first = #rule.windows > 0, 0, 0, 0
  for i = 4, #vote do
    local actor, amount, at, labels, record = unpack(vote[i], 1, 5)
    local old = known[actor] or stored[i - 3]
    local replaces, before = true, 0
    if is_taken(at, vote[i][8] and vote[i][6], vote[i][7], reset) then
      amount = 0 -- a dead letter that is retried
    end
    if old then
      local old_at, old_amount, old_labels, old_place = records.parse_vote(old)
      before = old_amount
      if reset then
        local milliseconds, number = records.parse_place(old_place)
        before = is_taken(old_at, milliseconds, number, reset) and 0 or old_amount
      end
      replaces = at > old_at or (at == old_at and is_later(vote[i], old_place))
      if replaces and windowed then
        additions.add_to_windows(self, rule, records.split_labels(old_labels, rule), subject, -before)
      end
    else
      first = first + 1
    end
    if replaces then
      known[actor] = record
      score = score + amount - before
      up = up + (amount > 0 and 1 or 0) - (before > 0 and 1 or 0)
      if windowed then
        additions.add_to_windows(self, rule, self.batch.labels[labels], subject, amount)
      end
    end
    self.voted = (replaces and before ~= amount) or not old
  end
  additions.settle(self, 'counted', rule, first)
  additions.settle(self, 'rejected:once', rule, #vote - 3 - first)
  if score ~= 0 then
    additions.add_to_total(self, rule, rule.total, subject, score)
  end
  if up ~= 0 then
    additions.add_to_total(self, rule, rule.up, subject, up)
  end
  local unplaced = #vote == 4 and not vote[4][8] and known[vote[4][1]] -- the only vote of the batch
  for actor, record in pairs(known) do
    if not (unplaced and actor == vote[4][1]) then
      writes[#writes + 1] = actor
      writes[#writes + 1] = record
    end
  end
  self.hashes[#self.hashes + 1] = { key, writes }
  if unplaced then
    writes[#writes + 1] = vote[4][1]
    writes[#writes + 1] = unplaced
    self.unplaced = { writes = writes, at = vote[4][3], text = vote[4][6] }
  end
end

-- Completes the record of a vote without a place: `id` is the stream ID of its entry.
local function place(self, id)
  local unplaced = self.unplaced
  if unplaced then
    local milliseconds, number = streams.parse_id(id)
    local place_ = string.format('%.0f.%.0f', milliseconds - unplaced.at, number)
    local last = #unplaced.writes
    unplaced.writes[last] = unplaced.writes[last] .. place_ .. unplaced.text
  end
end

local function plan(self)
  for _, vote in ipairs(self.batch.votes) do
    plan_subject(self, vote)
  end
end

return { place = place, plan = plan }
