-- Part of plan() in rules.lua: alerts. The script knows each new value, so a crossing is decided here.
  -- Level, not edge: what is beyond its bound and not firing fires. So an alert that found the outbox full, or that was
  -- declared only now, fires with the next event.
  local looked = {} -- by key of the state: { alert, key, expiry, label, subjects, values }
  local function look(rule, nth, label, subject, value)
    for _, alert in ipairs(rule.watch) do
      local place = alert.nth == nth and (alert.all == 1 or alert.subjects[subject]) and alert.buckets[label]
      if place then
        local seen = looked[place[1]]
        if not seen then
          seen = { alert, place[1], place[2], label, {}, {} }
          looked[place[1]] = seen
        end
        local n = #seen[5] + 1
        seen[5][n], seen[6][n] = subject, value
      end
    end
  end

  local function judge()
    for _, touched in ipairs(batch.touched) do
      call('ZCARD', touched[1])
    end
    local room = MAX_OUTBOX - call('XLEN', batch.outbox)
    for key, seen in pairs(looked) do
      local alert = seen[1]
      local firing = call('HLEN', key)
      local stored = firing > 0 and each_value('HMGET', key, seen[5]) or {}
      for i, subject in ipairs(seen[5]) do
        local value, record = seen[6][i], stored[i]
        local fires, clears = value < alert.bound, value >= alert.clear
        if alert.above == 1 then
          fires, clears = value > alert.bound, value <= alert.clear
        end
        fires = fires and not record and firing < MAX_FIRING
        clears = clears and record and record ~= ENDED
        if room > 0 and (fires or clears) then
          room = room - 1
          firing = firing + (fires and 1 or 0)
          result.alerts[#result.alerts + 1] = { key, alert, subject, spell(value), record, seen[3], seen[4] }
        end
      end
    end
  end
