-- alert_states: changes the state of an alert for one subject and appends the notification, for rules/alerts.lua and
-- the worker's change_alerts.lua.

local call = redis.call

-- The same limits as in `tallystream.rules.alerts`.
local MAX_OUTBOX = 10000 -- most notifications that may wait to be delivered
local MAX_FIRING = 10000 -- most subjects for which one alert fires at a time
local ENDED = 'ended' -- state of a subject whose alert fired in a bucket that has ended

-- Appends the notification and writes the state of one subject. `alert` = { name, metric }.
-- `change` = { subject, value, label of the bucket, record, keep_ended }. `record` is the previous state,
-- "<ID of its notification> <value>", or `false` if the alert begins to fire. If `keep_ended` is set, the state of a
-- resolved subject becomes ENDED, so that the alert cannot fire for it again; otherwise the state is deleted.
local function change_state(outbox, states, alert, change)
  local subject, value, record = change.subject, change.value, change.record
  local state = record and 'resolved' or 'firing'
  local fired = record and string.match(record, '^%S+') or ''
  -- stylua: ignore
  local id = call('XADD', outbox, '*', 'alert', alert.name, 'metric', alert.metric, 'subject', subject,
    'state', state, 'value', value, 'bucket', change.label, 'fired', fired)
  if not record then
    call('HSET', states, subject, id .. ' ' .. value)
  elseif change.keep_ended then
    call('HSET', states, subject, ENDED)
  else
    call('HDEL', states, subject)
  end
end

return { change_state = change_state, ENDED = ENDED, MAX_FIRING = MAX_FIRING, MAX_OUTBOX = MAX_OUTBOX }
