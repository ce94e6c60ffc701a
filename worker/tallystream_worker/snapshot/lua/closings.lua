-- closings: finds out whether a later closing of topics than that of a restore has changed a partition.
local call = redis.call

-- Returns whether the partition was closed by a higher number than `closing`: for good, which its sequences state, or
-- by a restore that has not finished, which the key of its live generation states.
local function is_overtaken(sequences, live, closing)
  local closed = tonumber(call('HGET', sequences, '!closing') or '0')
  local restoring = string.match(call('GET', live) or '', ' restoring (%d+)')
  return math.max(closed, tonumber(restoring or '0')) > tonumber(closing)
end

return { is_overtaken = is_overtaken }
