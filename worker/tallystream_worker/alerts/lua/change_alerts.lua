#!lua
-- change_alerts: compare-and-set of the states of one alert, with a notification of each change.
--
-- KEYS[1] states (hash: subject -> record)   KEYS[2] outbox (stream)
-- ARGV[1] alert   ARGV[2] metric   ARGV[3] label of the bucket or ""
-- ARGV[4..] for each subject: subject, "firing" | "resolved" | "ended", value
--
-- Returns how many states have changed.
--
-- Invariant: a state changes in the call that writes its notification. A subject begins to fire only where it is not
-- firing, and is resolved only where it is; so of several workers that see the same, one says it.
--@include tallystream.storage lib/alert_change
local states, outbox = KEYS[1], KEYS[2]
local room = MAX_OUTBOX - redis.call('XLEN', outbox)
local firing = redis.call('HLEN', states)
local changed = 0
for i = 4, #ARGV, 3 do
  local subject, to, value = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local record = redis.call('HGET', states, subject)
  local begins = to == 'firing' and not record and firing < MAX_FIRING
  local ends = to ~= 'firing' and record and record ~= ENDED
  if room > 0 and (begins or ends) then
    change_alert(outbox, states, ARGV[1], ARGV[2], subject, value, record, ARGV[3], to == 'ended')
    room, changed = room - 1, changed + 1
    firing = firing + (begins and 1 or 0)
  end
end
return changed
