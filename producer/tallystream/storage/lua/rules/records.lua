-- records: the stored form of an event that a later one may replace: "<millisecond> <amount> <labels of its buckets>".
--
-- The record of an ID has the earliest event with it in its period. If the latest is later, its distance follows the
-- time: "<millisecond>+<milliseconds> <amount> <labels>".
--
-- A vote also has its place in the log, which decides between votes with the same time:
-- "<millisecond>@<place> <amount> <labels>". The place is "<milliseconds>.<number>.<earlier>": the stream ID of its
-- entry, whose milliseconds are relative to those of the vote, and the number of votes of the actor that were before it
-- in the entry at the same time; ".<earlier>" is left out if it is 0.

-- Returns the millisecond, the amount, the labels and the place of a vote; the place is a text.
local function parse_vote(record)
  local at, place, amount, labels = string.match(record, '^(%d+)@([%d.-]+) (-?%d+) ?(.*)$')
  return tonumber(at), tonumber(amount), labels, place
end

-- Returns the time of the earliest and of the latest event with an ID, and the amount and labels of the earliest.
local function parse_id(record)
  local at, more, amount, labels = string.match(record, '^(%d+)%+?(%d*) (-?%d+) ?(.*)$')
  at = tonumber(at)
  return at, more == '' and at or at + tonumber(more), tonumber(amount), labels
end

-- Returns the time of the latest event with an ID.
local function latest(record)
  local at, more = string.match(record, '^(%d+)%+?(%d*)')
  return more == '' and tonumber(at) or tonumber(at) + tonumber(more)
end

-- Returns the record of an ID.
local function build_id(first, last, amount, labels)
  if last == first then
    return string.format('%.0f %.0f %s', first, amount, labels)
  end
  return string.format('%.0f+%.0f %.0f %s', first, last - first, amount, labels)
end

-- Returns the three numbers of the place of a vote.
local function parse_place(place)
  local milliseconds, number, earlier = string.match(place, '^(-?%d+)%.(%d+)%.?(%d*)$')
  return tonumber(milliseconds), tonumber(number), tonumber(earlier) or 0
end

-- Returns the labels of a record as a list: that of the limit, then one for each window of the rule. No bucket is "-"
-- in the text, and '' in the list. The record may be from a time when the metric had other windows, so a window's label
-- is found by its length, which is different for each window.
local function split_labels(text, rule)
  local labels, by_length = { '' }, {}
  local n = 0
  for label in string.gmatch(text, '[^ ]+') do
    n = n + 1
    if n > 1 then
      by_length[#label] = label
    elseif label ~= '-' then
      labels[1] = label
    end
  end
  for nth, length in ipairs(rule.lengths) do
    labels[nth + 1] = by_length[length] or ''
  end
  return labels
end

return {
  build_id = build_id,
  latest = latest,
  parse_id = parse_id,
  parse_place = parse_place,
  parse_vote = parse_vote,
  split_labels = split_labels,
}
