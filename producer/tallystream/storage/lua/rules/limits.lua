-- Part of plan() in rules.lua: limits. Uses what the ids have counted.
  -- Limits: the sum of what was asked is kept, and min(limit, sum) of it counts.
  for _, column in ipairs(batch.limited) do
    local rule, labels = rules[column[1]], batch.labels[column[2]]
    for i, subject in ipairs(column[3]) do
      count(rule, labels, subject, column[4][i])
    end
  end
  for key, asked in pairs(limited) do
    local rule, labels, by_subject = unpack(asked)
    local subjects, writes = {}, {}
    for subject in pairs(by_subject) do
      subjects[#subjects + 1] = subject
    end
    local stored = each_value('HMGET', key, subjects)
    for i, subject in ipairs(subjects) do
      local old = tonumber(stored[i] or '0')
      local new = old + by_subject[subject]
      local accepted = math.min(rule.limit, new) - math.min(rule.limit, old)
      writes[2 * i - 1] = subject
      writes[2 * i] = spell(new)
      move('counted', rule, accepted)
      move('rejected:limit', rule, by_subject[subject] - accepted)
      add(rule, labels, subject, accepted)
      result.used[#result.used + 1] = new
    end
    result.hashes[#result.hashes + 1] = { key, writes }
  end
