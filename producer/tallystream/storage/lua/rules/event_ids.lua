-- event_ids: an event with an ID counts once. The IDs of a period are in a hash, which is exact, or in a Bloom filter,
-- which needs less memory.
local additions = require('tallystream.storage.lua.rules.additions')
local chunks = require('tallystream.storage.lua.lib.chunks')
local records = require('tallystream.storage.lua.rules.records')

local call = redis.call
local BLOOM_BITS, BLOOM_HASHES = 8388608, 7 -- 1 MiB, an approximation: with 400,000 IDs, 1 in 6,600 counts as a copy
local BITS = chunks.SIZE / 4 -- bits that one BITFIELD sets: each takes 4 arguments

local function count_duplicate(self, rule)
  additions.settle(self, 'duplicate', rule, 1)
  self.duplicates = self.duplicates + 1
end

-- Returns the positions of the bits that mark an ID: double hashing (Kirsch and Mitzenmacher, 2006) of its SHA-1.
local function bloom_positions(field)
  local digest = redis.sha1hex(field)
  local first, step = tonumber(string.sub(digest, 1, 8), 16), tonumber(string.sub(digest, 9, 16), 16)
  local positions = {}
  for n = 1, BLOOM_HASHES do
    positions[n] = string.format('%.0f', (first + n * step) % BLOOM_BITS)
  end
  return positions
end

-- Plans events with an ID by a Bloom filter: an approximation that takes a few new events for duplicates. The first
-- event of an ID that arrives counts, whatever its time. So this is the only rule whose totals depend on the order of
-- the events; the documentation of its setting states it.
local function filter(self, rule, key, seen)
  local set, known = {}, {}
  for i = 3, #seen do
    local field, subject, amount, _, labels = unpack(seen[i])
    local positions, gets = bloom_positions(field), {}
    for n, position in ipairs(positions) do
      gets[3 * n - 2], gets[3 * n - 1], gets[3 * n] = 'GET', 'u1', position
    end
    if known[field] or math.min(unpack(call('BITFIELD_RO', key, unpack(gets)))) == 1 then
      count_duplicate(self, rule)
    else
      known[field] = true
      for _, position in ipairs(positions) do
        set[#set + 1] = position
      end
      if rule.limit == 0 then
        additions.settle(self, 'counted', rule, 1)
      end
      additions.count(self, rule, self.batch.labels[labels], subject, amount)
    end
  end
  self.bits[#self.bits + 1] = { key, set }
end

-- Plans events with an ID by a hash: the earliest event of an ID counts, in whatever order its copies arrive.
local function identify(self, rule, key, seen)
  local fields = {}
  for i = 3, #seen do
    fields[i - 2] = seen[i][1]
  end
  local stored, known, writes = chunks.hash_values(key, fields), {}, {}
  for i = 3, #seen do
    local field, subject, amount, at, number = unpack(seen[i])
    local labels = self.batch.labels[number]
    local old = known[field] or stored[i - 2]
    local replaces = true
    if old then
      count_duplicate(self, rule)
      local old_at, old_amount, old_labels = records.parse(old)
      replaces = at < old_at or (at == old_at and amount < old_amount)
      if replaces then
        additions.count(self, rule, records.split_labels(old_labels), subject, -old_amount)
      end
    elseif rule.limit == 0 then
      additions.settle(self, 'counted', rule, 1)
    end
    if replaces then
      known[field] = records.build(at, amount, labels.text)
      additions.count(self, rule, labels, subject, amount)
    end
  end
  for field, record in pairs(known) do
    writes[#writes + 1] = field
    writes[#writes + 1] = record
  end
  self.hashes[#self.hashes + 1] = { key, writes }
end

local function plan(self)
  for _, seen in ipairs(self.batch.seen) do
    local rule = self.rules[seen[1]]
    local remember = rule.bloom == 1 and filter or identify
    remember(self, rule, seen[2], seen)
  end
end

-- Sets the bits of the Bloom filters; write.lua writes the hashes.
local function write(self)
  for _, bits in ipairs(self.bits) do
    local key, positions = bits[1], bits[2]
    for first = 1, #positions, BITS do
      local sets = {}
      for n = first, math.min(first + BITS - 1, #positions) do
        local at = 4 * (n - first)
        sets[at + 1], sets[at + 2], sets[at + 3], sets[at + 4] = 'SET', 'u1', positions[n], '1'
      end
      call('BITFIELD', key, unpack(sets))
    end
  end
end

return { plan = plan, write = write }
