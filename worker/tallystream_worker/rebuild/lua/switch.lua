#!lua
-- switch: makes another generation the live one of a partition, once it contains all that the present one does.
--
-- KEYS[1] stream   KEYS[2] live generation
-- ARGV[1] present generation   ARGV[2] its group   ARGV[3] the generation to be live   ARGV[4] its group
--
-- Returns {"switched"}   it is live, now or since before
--         {"behind"}     it has still to count something that the present one may have counted
--         {"other"}      neither of the two is live
--
-- Invariant: what is in the present generation's counters is in the new one's, so no total goes back. The present one
-- has counted at most what its group was handed, and what was decided; from here on apply.lua and decide.lua refuse it.
local call = redis.call
local LATER = 100 -- entries that may wait to be counted, if none of them was decided

local function number(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local function before(a, b)
  local a_ms, a_seq = number(a)
  local b_ms, b_seq = number(b)
  return a_ms < b_ms or (a_ms == b_ms and a_seq < b_seq)
end

local live = call('GET', KEYS[2]) or '1'
if live == ARGV[3] then
  return { 'switched' }
elseif live ~= ARGV[1] then
  return { 'other' }
end
local groups = {}
for _, each in ipairs(call('XINFO', 'GROUPS', KEYS[1])) do
  local named = {}
  for i = 1, #each, 2 do
    named[each[i]] = each[i + 1]
  end
  groups[named.name] = named
end
local present, new = groups[ARGV[2]], groups[ARGV[4]]
if not new then
  error({ err = 'NOGROUP ' .. KEYS[1] .. ' has no consumer group ' .. ARGV[4] })
end
local delivered = new['last-delivered-id']
if new.pending > 0 or (present and before(delivered, present['last-delivered-id'])) then
  return { 'behind' }
end
local waiting = call('XRANGE', KEYS[1], '(' .. delivered, '+', 'COUNT', LATER)
if #waiting == LATER then
  return { 'behind' }
end
for _, entry in ipairs(waiting) do
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'd' then
      return { 'behind' }
    end
  end
end
call('SET', KEYS[2], ARGV[3])
return { 'switched' }
