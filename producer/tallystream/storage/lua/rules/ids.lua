-- Part of plan() in rules.lua: event ids. Uses move, count, bloom_positions, standing, split, each_value.
  -- Ids in a Bloom filter: an approximation. It is cheap, and takes a few new events for copies. The first to come
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
