-- rule_changes: numbers the rules of a topic, and records each change of its live rules.
local MOST = 100 -- changes that are kept

-- Returns a number for new rules, above that of all rules that the topic has had, and above `least`. The caller stores
-- it as `newest-revision`.
local function next_number(meta, least)
  local newest = tonumber(redis.call('HGET', meta, 'newest-revision') or '0')
  return string.format('%.0f', math.max(newest, tonumber(least)) + 1)
end

-- Adds a change to the stream `changes`; its ID is the server's time. Call it in the script that stores the rules.
local function record(changes, number, by, generation, rules)
  local fields = { 'number', number, 'by', by, 'generation', generation, 'rules', rules }
  redis.call('XADD', changes, 'MAXLEN', MOST, '*', unpack(fields))
end

return { next_number = next_number, record = record }
