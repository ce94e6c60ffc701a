-- write: writes the changes that plan.lua returned. It cannot fail: plan has read every key that is written here, and
-- so checked its type. As in plan.lua, a module that most batches do not need is required in the line that needs it.
local chunks = require('tallystream.storage.lua.lib.chunks')
local labels_key = require('tallystream.storage.lua.rules.changes').labels_key
local numbers = require('tallystream.storage.lua.lib.numbers')

-- Writes the totals and the hashes.
local function write_counters(changes)
  local call = redis.call
  for _, writes in ipairs(changes.strings) do
    if #writes > 0 then
      call('MSET', unpack(writes))
    end
  end
  for _, hash in ipairs(changes.hashes) do
    chunks.each(call, 'HSET', hash[1], hash[2], 1)
  end
  local labels = changes.labels
  for i = 1, #labels, 2 do
    call('SADD', labels_key(changes.ledger_key, labels[i]), labels[i + 1])
  end
end

-- Writes Bloom filters, uniques, sketches, leaderboards and alerts. Sketches add to leaderboards, so they come first.
local function write_structures(changes)
  if #changes.bits > 0 then
    require('tallystream.storage.lua.rules.event_ids').write(changes)
  end
  if #changes.uniques > 0 then
    require('tallystream.storage.lua.rules.uniques').write(changes)
  end
  if #changes.sketches > 0 then
    require('tallystream.storage.lua.rules.sketches').write(changes)
  end
  if #changes.boards > 0 then
    require('tallystream.storage.lua.rules.leaderboards').write(changes)
  end
  if changes.batch.outbox then
    require('tallystream.storage.lua.rules.alerts').write(changes, changes.now)
  end
end

local function write(changes)
  local ledger_key = changes.ledger_key
  if changes.cut_ttl >= 0 then
    require('tallystream.storage.lua.rules.copy_on_write')(changes, changes.cut, changes.cut_ttl)
  end
  write_counters(changes)
  write_structures(changes)
  if #changes.batch.periods > 0 or #changes.unique_periods > 0 or next(changes.batch.left_out) then
    require('tallystream.storage.lua.rules.forget_periods').keep(changes)
  end
  for field, events in pairs(changes.ledger) do
    if events ~= 0 then
      -- Only the sum over a whole metric can exceed 64 bits: then its field stays unchanged, and counting continues.
      redis.pcall('HINCRBY', ledger_key, field, numbers.number_string(events))
    end
  end
end

return write
