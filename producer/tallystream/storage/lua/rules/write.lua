-- Part of rules.lua: the writing. Nothing here fails: plan() has read every key that it touches.
local function sketch_cells(subject)
  local digest = redis.sha1hex(subject)
  local cells = {}
  for row = 1, SKETCH_ROWS do
    cells[row] = (row - 1) * SKETCH_WIDTH + tonumber(string.sub(digest, 8 * row - 7, 8 * row), 16) % SKETCH_WIDTH
  end
  return cells
end

local function write(result)
  before(result)
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
  local time = call('TIME')
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  local soonest = now + KEPT
  for _, unique in ipairs(result.uniques) do
    local key, actors, expiry, is_new = unpack(unique, 1, 4)
    for first = 2, #actors, CHUNK do
      pcall_('PFADD', key, unpack(actors, first, math.min(first + CHUNK - 1, #actors))) -- fails of damaged bytes only
    end
    if expiry > 0 then
      -- There are many, and a look is cheaper than a write: one that is kept long enough is left alone.
      local wanted = math.max(expiry, soonest)
      local kept = is_new and 0 or now + call('PTTL', key)
      if kept < wanted - 1000 or kept > wanted + SLACK then
        call('PEXPIREAT', key, format('%.0f', expiry < soonest and soonest + SLACK or expiry))
      end
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
  for _, change in ipairs(result.alerts) do
    local key, alert, subject, value, record, expiry, label = unpack(change, 1, 7)
    change_alert(result.outbox, key, alert.name, alert.metric, subject, value, record, label)
    if expiry > 0 then
      call('PEXPIREAT', key, format('%.0f', expiry))
    end
  end
  for _, touched in ipairs(result.touched or {}) do
    for first = 2, #touched, CHUNK do
      local scored = {}
      for i = first, math.min(first + CHUNK - 1, #touched) do
        scored[#scored + 1] = format('%.0f', now)
        scored[#scored + 1] = touched[i]
      end
      call('ZADD', touched[1], unpack(scored))
    end
    call('ZREMRANGEBYRANK', touched[1], 0, -(MAX_FIRING + 1))
  end
  for i = 1, #result.expire, 2 do
    if result.expire[i + 1] > 0 then
      call('PEXPIREAT', result.expire[i], format('%.0f', math.max(result.expire[i + 1], soonest)))
    end
  end
  for field, events in pairs(result.ledger) do
    if events ~= 0 then
      -- Only the sum over a whole metric can leave 64 bits: then it stays as it is, and its counters go on.
      redis.pcall('HINCRBY', KEYS[3], field, spell(events))
    end
  end
end
