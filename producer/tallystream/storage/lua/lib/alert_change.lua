-- One change of an alert's state and the notification of it: always together. For rules.lua and change_alerts.lua.
local MAX_OUTBOX, MAX_FIRING, ENDED = 10000, 10000, 'ended' -- as in alert.py

-- `record` is the state that is left, "<id of its notification> <value>", or false where it begins to fire.
local function change_alert(outbox, key, name, metric, subject, value, record, label, keep)
  local fired = record and string.match(record, '^%S+') or ''
  local id = redis.call('XADD', outbox, '*', 'alert', name, 'metric', metric, 'subject', subject,
    'state', record and 'resolved' or 'firing', 'value', value, 'bucket', label, 'fired', fired)
  if not record then
    redis.call('HSET', key, subject, id .. ' ' .. value)
  elseif keep then
    redis.call('HSET', key, subject, ENDED)
  else
    redis.call('HDEL', key, subject)
  end
end
