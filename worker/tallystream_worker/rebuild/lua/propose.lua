#!lua
-- propose: agrees on the number of the generation that is to be built.
--
-- KEYS[1] meta (hash)   ARGV[1] rules, as they are published
--
-- Returns {"building", generation}   it is to be built by these rules, also if it was before
--         {"other", generation}      one is being built by other rules
--         {"kept", generation}       an old one is still there
--
-- Invariant: a number is never given twice: decided entries carry it in the stream for ever.
local call = redis.call
local building = call('HGET', KEYS[1], 'building')
if building then
  return { call('HGET', KEYS[1], 'rules@' .. building) == ARGV[1] and 'building' or 'other', building }
end
for _, name in ipairs(call('HKEYS', KEYS[1])) do
  local kept = string.match(name, '^rules@(%d+)$')
  if kept then
    return { 'kept', kept }
  end
end
local present = call('HGET', KEYS[1], 'generation') or '1'
local newest = math.max(tonumber(call('HGET', KEYS[1], 'newest') or '1'), tonumber(present)) + 1
local number = string.format('%.0f', newest)
call('HSET', KEYS[1], 'generation', present, 'newest', number, 'building', number, 'rules@' .. number, ARGV[1])
return { 'building', number }
