-- closings: finds out whether a later closing of topics than that of a restore has changed a partition.
local call = redis.call

-- Returns whether the partition was closed by a higher number than `closing`: for good, which its sequences state, or
-- by a restore that has not finished, which the key of its live generation states. If the root hash was lost, another
-- restore may have the same number. Then `own` shows whose it is: the value of that key after this closing.
local function is_overtaken(sequences, live, closing, own)
  local closed = tonumber(call('HGET', sequences, '!closing') or '0')
  local present = call('GET', live) or ''
  local restoring = string.match(present, ' restoring (%d+)')
  local highest = math.max(closed, tonumber(restoring or '0'))
  return highest > tonumber(closing) or highest == tonumber(closing) and present ~= own
end

return { is_overtaken = is_overtaken }
