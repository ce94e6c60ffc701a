-- Part of plan() in rules.lua: totals, windows and their leaderboards, for the plain sums of the batch and for what
-- the rules with state have added to them. Every key is read once here, and written once in write().
  -- A leaderboard holds the largest `cap` values; what lies below its last, once it is full, need not enter.
  local function board(rule, key)
    local last = -math.huge
    if call('ZCARD', key) >= rule.top then
      last = tonumber(call('ZRANGE', key, 0, 0, 'WITHSCORES')[2])
    end
    local rank = { key, rule.top, {}, {}, last }
    result.ranks[#result.ranks + 1] = rank
    return rank
  end
  local function enter(rule, rank, subject, value, delta)
    if value >= rank[5] then
      local entering = rank[3]
      entering[#entering + 1] = spell(value)
      entering[#entering + 1] = subject
    elseif delta < 0 then
      local sinking = rank[4] -- matters only if it is in the list; then others that were cut may belong there
      sinking[#sinking + 1] = spell(value)
      sinking[#sinking + 1] = subject
      ledger['shrunk@' .. rule.metric] = (ledger['shrunk@' .. rule.metric] or 0) + 1
    end
  end

  -- All-time totals. One MGET and one MSET for thousands of keys instead of an INCRBY each: faster, and an
  -- overflow is seen before anything is written.
  local sketched = {} -- by rule: the subjects beyond its quota
  local function totals(rule, prefix, subjects, keys, deltas)
    local rank = rule.top > 0 and prefix == rule.total and board(rule, rule.tops[1])
    local watched = rule.watch and prefix == rule.total
    local room = math.huge
    if rule.quota > 0 and prefix == rule.total then
      local field = 'subjects@' .. rule.metric
      room = rule.quota - tonumber(call('HGET', KEYS[3], field) or '0') - (ledger[field] or 0)
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
          new = (tonumber(old) or NO_NUMBER) + delta
        else
          absent[#absent + 1] = i
          fresh = fresh + 1
          exact = fresh <= room
        end
        sum = sum + delta
        if not exact then
          fresh = fresh - 1
          local overflow = sketched[rule] or { subjects = {}, deltas = {}, known = {} }
          sketched[rule] = overflow
          overflow.subjects[#overflow.subjects + 1] = subjects[i]
          overflow.deltas[#overflow.deltas + 1] = delta
          overflow.known[subjects[i]] = true
        else
          if new > MAX or new < -MAX or new % 1 ~= 0 then
            refuse(rule, subjects[i])
          end
          writes[at] = keys[i]
          writes[at + 1] = (new < 1e6 and new > -1e6) and new or format('%.0f', new)
          at = at + 2
          if rank then
            enter(rule, rank, subjects[i], new, delta)
          end
          if watched then
            look(rule, 0, '', subjects[i], new)
          end
        end
      end
      -- MGET reads a key of another type as absent, and MSET would replace it.
      if #absent > 0 then
        local names = {}
        for i, index in ipairs(absent) do
          names[i] = keys[index]
        end
        if call('EXISTS', unpack(names)) > 0 then
          for i, index in ipairs(absent) do
            if call('EXISTS', names[i]) == 1 then
              refuse(rule, subjects[index])
            end
          end
        end
      end
      result.strings[#result.strings + 1] = writes
    end
    if prefix == rule.total then
      ledger['total@' .. rule.metric] = (ledger['total@' .. rule.metric] or 0) + sum
      if rule.quota > 0 and fresh > 0 then
        ledger['subjects@' .. rule.metric] = (ledger['subjects@' .. rule.metric] or 0) + fresh
      end
    end
  end
  -- A subject may be in the plain sums and in what the rules with state add: one key must be written once.
  local stateful = next(total_extra) ~= nil
  for _, column in ipairs(batch.sums) do
    local rule, subjects, deltas = rules[column[1]], column[2], column[3]
    local keys, prefix = {}, rule.total
    for i = 1, #subjects do
      keys[i] = prefix .. subjects[i]
    end
    if stateful then
      local merged = {}
      for i = 1, #subjects do
        local extra = total_extra[keys[i]]
        merged[i] = deltas[i] + (extra and extra[3] or 0)
        total_extra[keys[i]] = nil
      end
      deltas = merged
    end
    totals(rule, prefix, subjects, keys, deltas)
  end
  local rest = {} -- by rule and prefix
  for key, extra in pairs(total_extra) do
    local prefix = extra[4]
    local column = rest[prefix] or { extra[1], prefix, {}, {}, {} }
    rest[prefix] = column
    local n = #column[3] + 1
    column[3][n], column[4][n], column[5][n] = extra[2], key, extra[3]
  end
  for _, column in pairs(rest) do
    totals(unpack(column))
  end

  -- Windows: one hash for each bucket.
  local function window(rule, nth, label, subjects, deltas)
    local key = rule.windows[nth] .. label
    local rank = rule.top > 0 and board(rule, rule.tops[nth + 1] .. label)
    local overflow = sketched[rule] and sketched[rule].known
    for first = 1, #subjects, CHUNK do
      local last = math.min(first + CHUNK - 1, #subjects)
      local stored = call('HMGET', key, unpack(subjects, first, last))
      local writes, at = {}, 1
      for i = first, last do
        local subject, delta = subjects[i], deltas[i]
        local old, new = stored[i - first + 1], delta
        if old then
          new = (tonumber(old) or NO_NUMBER) + delta
        end
        if new > MAX or new < -MAX or new % 1 ~= 0 then
          refuse(rule, subject)
        end
        if not (overflow and overflow[subject]) then
          writes[at] = subject
          writes[at + 1] = (new < 1e6 and new > -1e6) and new or format('%.0f', new)
          at = at + 2
          if rank then
            enter(rule, rank, subject, new, delta)
          end
          if rule.watch then
            look(rule, nth, label, subject, new)
          end
        end
      end
      result.hashes[#result.hashes + 1] = { key, writes }
    end
  end
  for _, column in ipairs(batch.windows) do
    local rule, nth, label, subjects, deltas = rules[column[1]], unpack(column, 2)
    if type(subjects) == 'number' then -- the same column as of the totals
      subjects, deltas = batch.sums[subjects][2], batch.sums[subjects][3]
    end
    local extra = window_extra[rule.windows[nth] .. label]
    if extra then
      window_extra[rule.windows[nth] .. label] = nil
      local merged, more = {}, extra[4]
      for i, subject in ipairs(subjects) do
        merged[i] = deltas[i] + (more[subject] or 0)
        more[subject] = nil
      end
      local all = {}
      for i, subject in ipairs(subjects) do
        all[i] = subject
      end
      for subject, delta in pairs(more) do
        all[#all + 1] = subject
        merged[#all] = delta
      end
      subjects, deltas = all, merged
    end
    window(rule, nth, label, subjects, deltas)
  end
  for key, extra in pairs(window_extra) do
    local rule, nth, label, more = unpack(extra)
    local subjects, deltas = {}, {}
    for subject, delta in pairs(more) do
      subjects[#subjects + 1] = subject
      deltas[#subjects] = delta
    end
    -- A bucket that has expired is not brought back by a vote that leaves it.
    if current[key] or call('EXISTS', key) == 1 then
      window(rule, nth, label, subjects, deltas)
    end
  end
