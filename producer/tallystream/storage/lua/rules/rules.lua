-- rules: what a batch changes. The one text of every counting rule; apply.lua and decide.lua include it, and it
-- includes a file for each kind of rule, in the order in which they build on each other.
--
-- plan(batch) only reads. It returns what to write, or names the totals that cannot take their delta.
-- write(plan) only writes, and cannot fail: plan has read every key that it touches, and so tried its type.
--
-- The batch (msgpack, made by `tallystream.rules.batch`):
--   rules  = { { metric, total = key prefix, up = key prefix, windows = { key prefix, ... }, limit = n or 0,
--               limits = key prefix, top = list length or 0, tops = { key prefix, ... },
--               quota = subjects or 0, sketch = key, bloom = 0 or 1 } }
--   sums   = { { rule, subjects, deltas }, ... }                      plain sums, all-time: one for each rule
--   windows = { { rule, nth window, label, subjects, deltas }, ... }  the same sums by bucket; in place of
--             subjects and deltas the number of a column of `sums`, where it is the same
--   limited = { { rule, labels, subjects, counts }, ... }             events of amount 1 of a limited metric
--   seen   = { { rule, key, { field, subject, amount, at, labels }, ... }, ... }   events with an id
--   votes  = { { rule, key, subject, { actor, amount, at, labels, record }, ... }, ... }   once an actor
--   uniques = { { rule, key prefix, millisecond as in expire, { { subject, actor, ... }, ... } }, ... }
--   expire = { key, millisecond, ... }     each bucket's keys that the batch's events lie in; 0 means never
--   sketches = { { rule, subjects, deltas }, ... }                     sums of metrics that are not exact
--   ledger = { field, events, ... }
--   outbox = key of the stream of notifications, only where alerts are declared; then rules have `watch`, see watch.py, and
--   touched = { { key, subject, ... }, ... }   subjects whose sums over a range are watched
-- `labels` = { label of the limit's bucket or "", label of each window's bucket }, as a reference into batch.labels.
--
-- Invariant: each total is a function of the set of events applied, whatever their order. Sums commute. A limit
-- keeps the sum of what was asked and accepts min(limit, sum). A vote or an id keeps one standing event, chosen by
-- (at, amount); a better one replaces it wherever the old one had been added.
--@include tallystream.storage lib/alert_change
local call, pcall_, tonumber, format, concat = redis.call, redis.pcall, tonumber, string.format, table.concat
local MAX = 9007199254740991 -- 2^53 - 1: what a double holds exactly
local NO_NUMBER = 2 * MAX + 2 -- out of bounds whatever is added
local CHUNK = 2000 -- arguments in one call: unpack fails at 8,000
local KEPT = 86400000 -- milliseconds that a key is kept at least after its last write, however old its bucket
local SLACK = 3600000 -- milliseconds by which it may be kept longer, so that not every write sets its expiry anew
local HYLL = 1213811788 -- these four letters
local SKETCH_ROWS, SKETCH_WIDTH = 4, 32768
local BLOOM_BITS, BLOOM_HASHES = 8388608, 7 -- 1 MiB, an approximation: with 400,000 ids, 1 in 6,600 is taken for a copy

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
    expire = batch.expire, ledger = {}, refused = {}, used = {}, alerts = {},
    outbox = batch.outbox, touched = batch.touched, duplicates = 0 }
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

--@include tallystream.storage rules/ids
--@include tallystream.storage rules/limits
--@include tallystream.storage rules/votes
--@include tallystream.storage rules/alerts
--@include tallystream.storage rules/sums

  -- Uniques: HyperLogLogs; adding an actor again changes nothing.
  for _, bucket in ipairs(batch.uniques) do
    local rule, prefix = rules[bucket[1]], bucket[2]
    local overflow = sketched[rule]
    for _, unique in ipairs(bucket[4]) do
      if not (overflow and overflow.known[unique[1]]) then -- subjects beyond the quota get no keys of their own
        local key = prefix .. unique[1]
        -- What a HyperLogLog begins with. PFCOUNT would tell as well, and write what it has counted into the log.
        local head = pcall_('BITFIELD_RO', key, 'GET', 'u32', 0, 'GET', 'u8', 32)
        if head.err or (head[1] ~= 0 and (head[1] ~= HYLL or head[2] > 1)) then
          refuse(rule, unique[1])
        end
        result.uniques[#result.uniques + 1] = { key, unique, bucket[3], head[1] == 0 }
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

  if batch.outbox then
    judge()
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

--@include tallystream.storage lib/copy_on_write
--@include tallystream.storage rules/write
