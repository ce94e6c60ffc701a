#!lua
-- change_alerts: changes the states of one alert for some subjects, and writes a notification of each change.
--
-- KEYS[1] states (hash: subject -> record)   KEYS[2] outbox (stream)
-- ARGV[1] alert   ARGV[2] metric   ARGV[3] label of the bucket or ""
-- ARGV[4..] for each subject: subject, "firing" | "resolved" | "ended", value
--
-- Returns {"changed", states that have changed} or {"damaged", key}; after the latter, nothing has changed.
--
-- Invariant: a state changes in the call that writes its notification. An alert begins to fire for a subject only if it
-- does not fire, and ends only if it does. So if several workers find the same change, it is notified once. No state
-- changes in a partition that has lost a sentinel, because the values that the worker has read may be too small.
local alert_states = require('tallystream.storage.lua.lib.alert_states')
local call = redis.call
local states, outbox = KEYS[1], KEYS[2]
local alert, label = { name = ARGV[1], metric = ARGV[2] }, ARGV[3]

local lost = require('tallystream.storage.lua.lib.sentinels').lost(outbox)
if lost then
  return { 'damaged', lost }
end

local room = alert_states.MAX_OUTBOX - call('XLEN', outbox)
local firing = call('HLEN', states)
local changed = 0
for i = 4, #ARGV, 3 do
  local subject, to, value = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local record = call('HGET', states, subject)
  local begins = to == 'firing' and not record and firing < alert_states.MAX_FIRING
  local ends = to ~= 'firing' and record and record ~= alert_states.ENDED
  if room > 0 and (begins or ends) then
    local change = { subject = subject, value = value, label = label, record = record, keep_ended = to == 'ended' }
    alert_states.change_state(outbox, states, alert, change)
    room, changed = room - 1, changed + 1
    firing = firing + (begins and 1 or 0)
  end
end
return { 'changed', changed }
