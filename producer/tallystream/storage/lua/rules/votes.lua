-- Part of plan() in rules.lua: one standing vote per actor and period.
  -- Votes: the latest event of an actor stands. The first one counts as an event; later ones move it.
  for _, vote in ipairs(batch.votes) do
    local rule, key, subject = rules[vote[1]], vote[2], vote[3]
    local actors = {}
    for i = 4, #vote do
      actors[i - 3] = vote[i][1]
    end
    local stored, known, writes = each_value('HMGET', key, actors), {}, {}
    local windowed, score, up, first = #rule.windows > 0, 0, 0, 0
    for i = 4, #vote do
      local event = vote[i]
      local actor, amount = event[1], event[2]
      local old = known[actor] or stored[i - 3]
      local replaces, before = true, 0
      if old then
        local at = event[3]
        local old_at, old_amount, old_labels = standing(old)
        before = old_amount
        replaces = at > old_at or (at == old_at and amount > old_amount)
        if replaces and windowed then
          add_windows(rule, split(old_labels), subject, -old_amount)
        end
      else
        first = first + 1
      end
      if replaces then
        known[actor] = event[5]
        score = score + amount - before
        up = up + (amount > 0 and 1 or 0) - (before > 0 and 1 or 0)
        if windowed then
          add_windows(rule, batch.labels[event[4]], subject, amount)
        end
      end
      result.voted = (replaces and before ~= amount) or not old
    end
    move('counted', rule, first)
    move('rejected:once', rule, #vote - 3 - first)
    if score ~= 0 then
      add_total(rule, rule.total, subject, score)
    end
    if up ~= 0 then
      add_total(rule, rule.up, subject, up)
    end
    for actor, record in pairs(known) do
      writes[#writes + 1] = actor
      writes[#writes + 1] = record
    end
    result.hashes[#result.hashes + 1] = { key, writes }
  end
