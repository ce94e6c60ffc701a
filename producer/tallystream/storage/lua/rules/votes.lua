-- votes: for each actor, only the latest event in a period counts for a subject. In the ledger, the first event of an
-- actor is counted and the others are rejected, although a later one replaces the amount of the vote.
local additions = require('tallystream.storage.lua.rules.additions')
local chunks = require('tallystream.storage.lua.lib.chunks')
local records = require('tallystream.storage.lua.rules.records')

-- Plans the votes for one subject in one period; plan.lua describes an element of `votes`.
local function plan_subject(self, vote)
  local rule, key, subject = self.rules[vote[1]], vote[2], vote[3]
  local actors = {}
  for i = 4, #vote do
    actors[i - 3] = vote[i][1]
  end
  local stored, known, writes = chunks.hash_values(key, actors), {}, {}
  local windowed, score, up, first = #rule.windows > 0, 0, 0, 0
  for i = 4, #vote do
    local actor, amount, at, labels, record = unpack(vote[i])
    local old = known[actor] or stored[i - 3]
    local replaces, before = true, 0
    if old then
      local old_at, old_amount, old_labels = records.parse(old)
      before = old_amount
      replaces = at > old_at or (at == old_at and amount > old_amount)
      if replaces and windowed then
        additions.add_to_windows(self, rule, records.split_labels(old_labels), subject, -old_amount)
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
  for actor, record in pairs(known) do
    writes[#writes + 1] = actor
    writes[#writes + 1] = record
  end
  self.hashes[#self.hashes + 1] = { key, writes }
end

local function plan(self)
  for _, vote in ipairs(self.batch.votes) do
    plan_subject(self, vote)
  end
end

return { plan = plan }
