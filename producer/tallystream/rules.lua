-- rules: what a batch changes. The one text of every counting rule; apply.lua and decide.lua include it.
--
-- plan(batch) only reads. It returns what to write, or names the totals that cannot take their delta.
-- write(plan) only writes, and cannot fail: plan has read every key that it touches, and so tried its type.
--
-- The batch (msgpack, made by `tallystream.batch`):
--   rules  = { { metric, total = key prefix, up = key prefix, windows = { key prefix, ... }, limit = n or 0,
--               limits = key prefix, top = list length or 0, tops = { key prefix, ... },
--               quota = subjects or 0, sketch = key, bloom = 0 or 1 } }
--   sums   = { { rule, subjects, deltas }, ... }                      plain sums, all-time: one for each rule
--   windows = { { rule, nth window, label, subjects, deltas }, ... }  the same sums by bucket; in place of
--             subjects and deltas the number of a column of `sums`, where it is the same
--   limited = { { rule, labels, subjects, counts }, ... }             events of amount 1 of a limited metric
--   seen   = { { rule, key, { field, subject, amount, at, labels }, ... }, ... }   events with an id
--   votes  = { { rule, key, subject, { actor, amount, at, labels, record }, ... }, ... }   once an actor
--   uniques = { { rule, subject, key, actor, ... }, ... }
--   expire = { key, millisecond, ... }     each bucket's keys that the batch's events lie in; 0 means never
--   sketches = { { rule, subjects, deltas }, ... }                     sums of metrics that are not exact
--   ledger = { field, events, ... }
-- `labels` = { label of the limit's bucket or "", label of each window's bucket }, as a reference into batch.labels.
--
-- Invariant: each total is a function of the set of events applied, whatever their order. Sums commute. A limit
-- keeps the sum of what was asked and accepts min(limit, sum). A vote or an id keeps one standing event, chosen by
-- (at, amount); a better one replaces it wherever the old one had been added.
local call, pcall_, tonumber, format, concat = redis.call, redis.pcall, tonumber, string.format, table.concat
local MAX = 9007199254740991 -- 2^53 - 1: what a double holds exactly
local NO_NUMBER = 2 * MAX + 2 -- out of bounds whatever is added
local CHUNK = 2000 -- arguments in one call: unpack fails at 8,000
local KEPT = 86400000 -- milliseconds that a key is kept at least after its last write, however old its bucket
local SKETCH_ROWS, SKETCH_WIDTH = 4, 32768
local BLOOM_BITS, BLOOM_HASHES = 8388608, 7 -- 1 MiB; with 400,000 ids, 1 in 6,600 is taken for a copy

-- Newer servers print a large number argument as 1e+15: such a one is spelled out.
local function spell(n)
  return (n < 1e6 and n > -1e6) and n or format('%.0f', n)
end

-- Calls `command key field...` for any number of fields; returns all values.
local function each_value(command, key, fields)
  local values = {}
  for first = 1, #fields, CHUNK do
    local part = call(command, key, unpack(fields, first, math.min(first + CHUNK - 1, #fields)))
    for i = 1, #part do
      values[first + i - 1] = part[i]
    end
  end
  return values
end

local function standing(record)
  local at, amount, labels = string.match(record, '^(%d+) (-?%d+) ?(.*)$')
  return tonumber(at), tonumber(amount), labels
end

local function split(labels)
  local parts = { '' }
  local n = 0
  for label in string.gmatch(labels, '[^ ]+') do
    n = n + 1
    parts[n] = label == '-' and '' or label
  end
  return parts
end

-- Where an id is marked: double hashing (Kirsch and Mitzenmacher, 2006) of its SHA-1.
local function bloom_positions(field)
  local digest = redis.sha1hex(field)
  local first, step = tonumber(string.sub(digest, 1, 8), 16), tonumber(string.sub(digest, 9, 16), 16)
  local positions = {}
  for n = 1, BLOOM_HASHES do
    positions[n] = format('%.0f', (first + n * step) % BLOOM_BITS)
  end
  return positions
end

local function plan(batch)
  local rules = batch.rules
  local result = { strings = {}, hashes = {}, ranks = {}, sketches = {}, bits = {}, uniques = {},
    expire = batch.expire, ledger = {}, refused = {}, used = {}, duplicates = 0 }
  local ledger, refused = result.ledger, result.refused
  local current = {} -- keys of the buckets that the events of this batch lie in
  for i = 1, #batch.expire, 2 do
    current[batch.expire[i]] = true
  end
  local total_extra, window_extra, limited = {}, {}, {} -- what the rules with state add

  local function move(field, rule, events)
    if events ~= 0 then
      ledger[field] = (ledger[field] or 0) + events
      local of = field .. '@' .. rule.metric
      ledger[of] = (ledger[of] or 0) + events
    end
  end

  local function refuse(rule, subject)
    refused[#refused + 1] = rule.metric
    refused[#refused + 1] = subject
  end

  local function add_total(rule, prefix, subject, delta)
    local key = prefix .. subject
    local extra = total_extra[key]
    if extra then
      extra[3] = extra[3] + delta
    else
      total_extra[key] = { rule, subject, delta, prefix }
    end
  end

  local function add_windows(rule, labels, subject, delta)
    for nth, prefix in ipairs(rule.windows) do
      local key = prefix .. labels[nth + 1]
      local extra = window_extra[key]
      if not extra then
        extra = { rule, nth, labels[nth + 1], {} }
        window_extra[key] = extra
      end
      extra[4][subject] = (extra[4][subject] or 0) + delta
    end
  end

  local function add(rule, labels, subject, delta)
    if delta ~= 0 then
      add_total(rule, rule.total, subject, delta)
      add_windows(rule, labels, subject, delta)
    end
  end

  -- Counts an amount of a metric that may have a limit.
  local function count(rule, labels, subject, amount)
    if rule.limit == 0 then
      return add(rule, labels, subject, amount)
    end
    local key = rule.limits .. labels[1]
    local asked = limited[key]
    if not asked then
      asked = { rule, labels, {} }
      limited[key] = asked
    end
    asked[3][subject] = (asked[3][subject] or 0) + amount
  end

  -- Ids in a Bloom filter: cheap, and for a few ids wrong: an event may be taken for a copy. The first to come
  -- stands, so this rule alone is no pure function of the set; it says so where it is declared.
  local function filter(rule, key, seen)
    local set, known = {}, {}
    for i = 3, #seen do
      local field, subject, amount, _, labels = unpack(seen[i])
      local positions, gets = bloom_positions(field), {}
      for n, position in ipairs(positions) do
        gets[3 * n - 2], gets[3 * n - 1], gets[3 * n] = 'GET', 'u1', position
      end
      local copy = known[field] or math.min(unpack(call('BITFIELD_RO', key, unpack(gets)))) == 1
      if copy then
        move('duplicate', rule, 1)
        result.duplicates = result.duplicates + 1
      else
        known[field] = true
        for _, position in ipairs(positions) do
          set[#set + 1] = position
        end
        if rule.limit == 0 then
          move('counted', rule, 1)
        end
        count(rule, batch.labels[labels], subject, amount)
      end
    end
    result.bits[#result.bits + 1] = { key, set }
  end

  -- Ids: the earliest event of an id stands, in whatever order its copies come.
  local function identify(rule, key, seen)
    local fields = {}
    for i = 3, #seen do
      fields[i - 2] = seen[i][1]
    end
    local stored, known, writes = each_value('HMGET', key, fields), {}, {}
    for i = 3, #seen do
      local field, subject, amount, at, labels = unpack(seen[i])
      labels = batch.labels[labels]
      local old = known[field] or stored[i - 2]
      local replaces = true
      if old then
        move('duplicate', rule, 1)
        result.duplicates = result.duplicates + 1
        local old_at, old_amount, old_labels = standing(old)
        replaces = at < old_at or (at == old_at and amount < old_amount)
        if replaces then
          count(rule, split(old_labels), subject, -old_amount)
        end
      elseif rule.limit == 0 then
        move('counted', rule, 1)
      end
      if replaces then
        known[field] = at .. ' ' .. amount .. ' ' .. labels.text
        count(rule, labels, subject, amount)
      end
    end
    for field, record in pairs(known) do
      writes[#writes + 1] = field
      writes[#writes + 1] = record
    end
    result.hashes[#result.hashes + 1] = { key, writes }
  end
  for _, seen in ipairs(batch.seen) do
    local rule = rules[seen[1]]
    local remember = rule.bloom == 1 and filter or identify
    remember(rule, seen[2], seen)
  end

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

  -- Uniques: HyperLogLogs; adding an actor again changes nothing.
  for _, unique in ipairs(batch.uniques) do
    local overflow = sketched[rules[unique[1]]]
    if not (overflow and overflow.known[unique[2]]) then -- subjects beyond the quota get no keys of their own
      result.uniques[#result.uniques + 1] = unique
      local reply = pcall_('PFCOUNT', unique[3])
      if type(reply) == 'table' and reply.err then
        refuse(rules[unique[1]], unique[2])
      end
    end
  end

  -- Sketches: linear, so order-free as well; the estimate is the least of a subject's cells.
  for _, column in ipairs(batch.sketches) do
    sketched[rules[column[1]]] = { subjects = column[2], deltas = column[3] }
    local sum = 0
    for i = 1, #column[3] do
      sum = sum + column[3][i]
    end
    local of = 'total@' .. rules[column[1]].metric
    ledger[of] = (ledger[of] or 0) + sum
  end
  for rule, overflow in pairs(sketched) do
    call('STRLEN', rule.sketch)
    local rank = rule.top > 0 and board(rule, rule.tops[1])
    local amount = 0
    for i = 1, #overflow.deltas do
      amount = amount + overflow.deltas[i]
    end
    ledger['sketched@' .. rule.metric] = (ledger['sketched@' .. rule.metric] or 0) + amount
    result.sketches[#result.sketches + 1] = { rule.sketch, overflow.subjects, overflow.deltas, rank, rule }
  end

  for i = 1, #batch.ledger, 2 do
    ledger[batch.ledger[i]] = (ledger[batch.ledger[i]] or 0) + batch.ledger[i + 1]
  end
  for field in pairs(ledger) do
    local old = call('HGET', KEYS[3], field)
    if old and not string.match(old, '^%-?%d+$') then
      error({ err = 'ERR ' .. KEYS[3] .. ' field ' .. field .. ' is not a whole number' })
    end
  end
  return result
end

local function sketch_cells(subject)
  local digest = redis.sha1hex(subject)
  local cells = {}
  for row = 1, SKETCH_ROWS do
    cells[row] = (row - 1) * SKETCH_WIDTH + tonumber(string.sub(digest, 8 * row - 7, 8 * row), 16) % SKETCH_WIDTH
  end
  return cells
end

local function write(result)
  for _, writes in ipairs(result.strings) do
    if #writes > 0 then
      call('MSET', unpack(writes))
    end
  end
  for _, hash in ipairs(result.hashes) do
    for first = 1, #hash[2], 2 * CHUNK do
      call('HSET', hash[1], unpack(hash[2], first, math.min(first + 2 * CHUNK - 1, #hash[2])))
    end
  end
  for _, bits in ipairs(result.bits) do
    for first = 1, #bits[2], CHUNK / 4 do
      local sets = {}
      for n = first, math.min(first + CHUNK / 4 - 1, #bits[2]) do
        local at = 4 * (n - first)
        sets[at + 1], sets[at + 2], sets[at + 3], sets[at + 4] = 'SET', 'u1', bits[2][n], '1'
      end
      call('BITFIELD', bits[1], unpack(sets))
    end
  end
  for _, unique in ipairs(result.uniques) do
    for first = 4, #unique, CHUNK do
      call('PFADD', unique[3], unpack(unique, first, math.min(first + CHUNK - 1, #unique)))
    end
  end
  for _, sketch in ipairs(result.sketches) do
    local key, subjects, deltas, rank = unpack(sketch, 1, 4)
    for i, subject in ipairs(subjects) do
      local arguments = {}
      for row, cell in ipairs(sketch_cells(subject)) do
        arguments[4 * row - 3], arguments[4 * row - 2] = 'INCRBY', 'i64'
        arguments[4 * row - 1], arguments[4 * row] = '#' .. format('%.0f', cell), spell(deltas[i])
      end
      local estimate = math.min(unpack(call('BITFIELD', key, unpack(arguments))))
      if rank and estimate >= rank[5] then
        table.insert(rank[3], spell(estimate))
        table.insert(rank[3], subject)
      end
    end
  end
  for _, rank in ipairs(result.ranks) do
    local key, cap, entering, sinking = unpack(rank, 1, 4)
    for first = 1, #entering, CHUNK do
      call('ZADD', key, unpack(entering, first, math.min(first + CHUNK - 1, #entering)))
    end
    for first = 1, #sinking, CHUNK do
      call('ZADD', key, 'XX', unpack(sinking, first, math.min(first + CHUNK - 1, #sinking)))
    end
    call('ZREMRANGEBYRANK', key, 0, -(cap + 1))
  end
  if #result.expire > 0 then
    local time = call('TIME')
    local soonest = tonumber(time[1]) * 1000 + KEPT
    for i = 1, #result.expire, 2 do
      if result.expire[i + 1] > 0 then
        call('PEXPIREAT', result.expire[i], format('%.0f', math.max(result.expire[i + 1], soonest)))
      end
    end
  end
  for field, events in pairs(result.ledger) do
    if events ~= 0 then
      -- Only the sum over a whole metric can leave 64 bits: then it stays as it is, and its counters go on.
      redis.pcall('HINCRBY', KEYS[3], field, spell(events))
    end
  end
end
