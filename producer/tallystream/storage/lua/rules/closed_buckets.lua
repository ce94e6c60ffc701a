-- closed_buckets: takes the buckets that have closed out of the batch of a decision, and those that have ended out of
-- its alerts. For an appended event the fold does the same, by the time at which the server received it. For a decision
-- that time is the present by the server's clock.

-- Returns the columns of a list whose bucket is open; `closes_of` returns the time at which a column's bucket closes.
local function open_columns(columns, closes_of, now)
  local open = {}
  for _, column in ipairs(columns) do
    local closes = closes_of(column)
    if closes == 0 or closes > now then
      open[#open + 1] = column
    end
  end
  return open
end

-- Removes the labels of closed buckets from `labels`; returns true if there were any.
local function drop_labels(batch, rule, labels, now)
  local words, dropped = { labels[1] }, false
  for nth, prefix in ipairs(rule.windows) do
    local closes = batch.closes[prefix .. labels[nth + 1]] or 0
    if closes > 0 and closes <= now then
      labels[nth + 1], dropped = '', true
    end
    words[nth + 1] = labels[nth + 1]
  end
  if dropped then
    for i, word in ipairs(words) do
      words[i] = word == '' and '-' or word
    end
    labels.text = table.concat(words, ' ')
  end
  return dropped
end

-- Removes the buckets that have ended from the alerts of a rule: they are not checked any more.
local function drop_watched(rule, now)
  for _, alert in ipairs(rule.watch or {}) do
    for label, bucket in pairs(alert.buckets) do
      if bucket[3] > 0 and bucket[3] <= now then
        alert.buckets[label] = nil
      end
    end
  end
end

-- Moves the buckets that have closed from the periods and uniques of the batch to `left_out`.
local function leave_out(batch, metric, now)
  local kept = {}
  for _, period in ipairs(batch.periods) do
    local closes = batch.closes[period[4]] or 0
    if closes > 0 and closes <= now then
      batch.left_out[period[1]] = period[2]
    else
      kept[#kept + 1] = period
    end
  end
  batch.periods = kept
  for _, bucket in ipairs(batch.uniques) do
    if bucket[3] > 0 and bucket[3] <= now then
      batch.left_out['unique:' .. metric] = bucket[4]
    end
  end
end

-- Removes the buckets that have closed at millisecond `now` from the batch of one event, and those that have ended from
-- its alerts.
local function drop(batch, now)
  local rule = batch.rules[1]
  drop_watched(rule, now)
  leave_out(batch, rule.metric, now)
  batch.windows = open_columns(batch.windows, function(column)
    return batch.closes[rule.windows[column[2]] .. column[3]]
  end, now)
  batch.uniques = open_columns(batch.uniques, function(column)
    return column[3]
  end, now)
  for number, labels in ipairs(batch.labels) do
    if drop_labels(batch, rule, labels, now) then
      for _, vote in ipairs(batch.votes) do
        for i = 4, #vote do
          local _, amount, _, of = unpack(vote[i])
          if of == number then
            vote[i][6] = string.format(' %.0f %s', amount, labels.text)
          end
        end
      end
    end
  end
end

return { drop = drop }
