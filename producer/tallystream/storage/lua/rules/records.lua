-- records: the stored form of an event that a later one may replace: "<millisecond> <amount> <labels of its buckets>".

-- Returns the millisecond and the amount of a record as numbers, and the labels as a text.
local function parse(record)
  local at, amount, labels = string.match(record, '^(%d+) (-?%d+) ?(.*)$')
  return tonumber(at), tonumber(amount), labels
end

-- Returns a record of these values.
local function build(at, amount, labels)
  return at .. ' ' .. amount .. ' ' .. labels
end

-- Returns the labels of a record as a list. No bucket is "-" in the text, and '' in the list.
local function split_labels(text)
  local labels = { '' }
  local n = 0
  for label in string.gmatch(text, '[^ ]+') do
    n = n + 1
    labels[n] = label == '-' and '' or label
  end
  return labels
end

return { build = build, parse = parse, split_labels = split_labels }
