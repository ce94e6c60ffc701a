-- rule_changes: numbers the rules of a topic, and records each change of its live rules.
local MOST = 1000 -- changes that are kept: workers with different rules that start in turn make many

-- Returns a number for new rules, above that of all rules that the topic has had, and above `least`. The caller stores
-- it as `newest-revision`.
local function next_number(meta, least)
  local newest = tonumber(redis.call('HGET', meta, 'newest-revision') or '0')
  return string.format('%.0f', math.max(newest, tonumber(least)) + 1)
end

-- Adds a change to the stream `changes`; its ID is the server's time. Call it in the script that stores the rules in
-- `meta`. The change gets the epoch and the number of partitions too: `tallystream reopen` restores a lost `meta` from
-- it.
local function record(meta, changes, number, by, generation, rules)
  local epoch, partitions = unpack(redis.call('HMGET', meta, 'epoch', 'partitions'))
  local fields = { 'number', number, 'by', by, 'generation', generation, 'rules', rules }
  if epoch and partitions then
    fields[9], fields[10], fields[11], fields[12] = 'epoch', epoch, 'partitions', partitions
  end
  redis.call('XADD', changes, 'MAXLEN', MOST, '*', unpack(fields))
end

-- Reads the live rules for a script that replaces them. Returns a refusal as the first value if the hash describes no
-- deployment, or if the number of the rules is not `expected` ('0' for none). Otherwise returns nil, the rules, their
-- number (both nil without rules) and the live generation.
local function read(meta, expected)
  local found = redis.call('HMGET', meta, 'rules', 'revision', 'generation', 'layout')
  local rules, number, generation, layout = unpack(found)
  if not layout then
    return { 'gone' }
  end
  if (number or '0') ~= expected then
    return { 'moved', number or '0' }
  end
  return nil, rules, number, generation or '1'
end

-- Stores rules as the live ones, with a number above that of all rules before and above `least`, and records the
-- change. Returns the number.
local function store(meta, changes, rules, by, generation, least)
  local number = next_number(meta, least)
  redis.call('HSET', meta, 'rules', rules, 'revision', number, 'newest-revision', number)
  record(meta, changes, number, by, generation, rules)
  return number
end

return { next_number = next_number, read = read, record = record, store = store }
