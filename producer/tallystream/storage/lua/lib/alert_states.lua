-- alert_states: one change of an alert's state together with the notification of it, for rules/alerts.lua and
-- change_alerts.lua of the worker.

local call = redis.call

-- The same limits as in `tallystream.rules.alerts`.
local MAX_OUTBOX = 10000 -- notifications that wait to be delivered
local MAX_FIRING = 10000 -- subjects of one alert that fire at a time
local ENDED = 'ended' -- the state of a subject that fired in a bucket that is over

-- Writes the notification and the state of one subject. `alert` = { name, metric }.
-- `change` = { subject, value, label of the bucket, record, keep_ended }: `record` is the state until now,
-- "<ID of its notification> <value>", or `false` if the alert begins to fire; `keep_ended` keeps a resolved subject as
-- ENDED, so that it cannot fire again.
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
