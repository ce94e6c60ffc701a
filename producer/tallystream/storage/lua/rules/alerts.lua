-- alerts: an alert fires for a subject whose counter is beyond the bound. The script decides it, because it has the new
-- values. The level matters, not the crossing: if a value is beyond the bound and the alert does not fire yet, it
-- begins to fire. So if the outbox was full, or the alert was declared later, the alert fires with the next event.
local alert_states = require('tallystream.storage.lua.lib.alert_states')
local chunks = require('tallystream.storage.lua.lib.chunks')
local numbers = require('tallystream.storage.lua.lib.numbers')

local call, format = redis.call, string.format

-- Records the new value of a subject for each alert on this counter. `nth` is the number of the window in the rule, 0
-- for the total.
local function check_alert(self, rule, nth, label, subject, value)
  for _, alert in ipairs(rule.watch) do
    local bucket = alert.nth == nth and (alert.all == 1 or alert.subjects[subject]) and alert.buckets[label]
    if bucket then
      local states, expiry = bucket[1], bucket[2]
      local watched = self.watched[states]
      if not watched then
        watched = { alert = alert, expiry = expiry, label = label, subjects = {}, values = {} }
        self.watched[states] = watched
      end
      local n = #watched.subjects + 1
      watched.subjects[n], watched.values[n] = subject, value
    end
  end
end

-- Returns whether a value is beyond the bound of an alert, and whether it is back at `clear`.
local function compare(alert, value)
  if alert.above == 1 then
    return value > alert.bound, value <= alert.clear
  end
  return value < alert.bound, value >= alert.clear
end

-- Decides one alert in one bucket for the recorded subjects. `room` is how many notifications the outbox can still
-- take; returns what is left of it.
local function evaluate_states(self, states, watched, room)
  local alert = watched.alert
  local firing = call('HLEN', states)
  local stored = firing > 0 and chunks.hash_values(states, watched.subjects) or {}
  for i, subject in ipairs(watched.subjects) do
    local value, record = watched.values[i], stored[i]
    local fires, clears = compare(alert, value)
    fires = fires and not record and firing < alert_states.MAX_FIRING
    clears = clears and record and record ~= alert_states.ENDED
    if room > 0 and (fires or clears) then
      room = room - 1
      firing = firing + (fires and 1 or 0)
      self.alerts[#self.alerts + 1] = {
        states = states,
        alert = alert,
        subject = subject,
        value = numbers.number_string(value),
        record = record,
        expiry = watched.expiry,
        label = watched.label,
      }
    end
  end
  return room
end

-- Decides for which subjects an alert begins to fire or is resolved. Must run after every rule that changes a counter.
local function evaluate_alerts(self)
  for _, touched in ipairs(self.batch.touched) do
    call('ZCARD', touched[2])
  end
  local room = alert_states.MAX_OUTBOX - call('XLEN', self.batch.outbox)
  for states, watched in pairs(self.watched) do
    room = evaluate_states(self, states, watched, room)
  end
end

-- Returns the score of the subjects that are counted at millisecond `now`: above every score in the sorted set, even if
-- the clock was set back. So an evaluator finds all subjects that were counted after the highest score that it read.
local function next_score(key, now)
  local highest = call('ZRANGE', key, 0, 0, 'REV', 'WITHSCORES')[2]
  return highest and math.max(now, tonumber(highest) + 1) or now
end

-- Writes the changed states with their notifications, and the subjects of alerts on a range with their score.
local function write(self, now)
  for _, change in ipairs(self.alerts) do
    alert_states.change_state(self.batch.outbox, change.states, change.alert, change)
    if change.expiry > 0 then
      call('PEXPIREAT', change.states, format('%.0f', change.expiry))
    end
  end
  for _, touched in ipairs(self.batch.touched or {}) do
    local key, scored = touched[2], {}
    local score = format('%.0f', next_score(key, now))
    for i = 3, #touched do
      scored[2 * i - 5], scored[2 * i - 4] = score, touched[i]
    end
    chunks.each(call, 'ZADD', key, scored, 1)
    call('ZREMRANGEBYRANK', key, 0, -(alert_states.MAX_FIRING + 1))
  end
end

return { check_alert = check_alert, evaluate_alerts = evaluate_alerts, write = write }
