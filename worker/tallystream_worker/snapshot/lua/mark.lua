#!lua
-- mark: stores the mark of a snapshot in the partition; there it is lost and comes back together with the log.
--
-- KEYS[1] sequences (hash)   KEYS[2] live generation
-- ARGV[1] the mark of the database's snapshot; "" for none   ARGV[2] the mark to add; "" to add none
-- ARGV[3] the number of the last closing of the partition before the snapshot was read; 0 for none. It has no meaning
--         if no mark is added
--
-- Returns {"marked"}
--         {"unknown"}   the first mark is missing: nothing was changed
--         {"replaced"}  a restore has replaced the counters since, or has begun to: nothing was changed
--         {"damaged", key}   the partition has lost this key since (see lib/sentinels.lua): nothing was changed
--
-- A mark is `<lineage>.<number>`; all snapshots in one database have the same lineage. The field `!snapshots` has the
-- marks, the latest last: of this lineage those since the first mark, and of other lineages at most 62.
--
-- Invariant: while a partition has a mark, it has everything that it had when the snapshot was taken: a server that
-- loses some of that loses the mark too, because the mark was written later. No mark is added for values that a restore
-- has replaced.
local sentinels = require('tallystream.storage.lua.lib.sentinels')
local call, match = redis.call, string.match
local sequences, known, added = KEYS[1], ARGV[1], ARGV[2]
local FIELD, OTHERS = '!snapshots', 62

local lineage = match(known, '^[^.]*')
local others, own, is_known = {}, {}, known == ''
for mark in string.gmatch(call('HGET', sequences, FIELD) or '', '%S+') do
  is_known = is_known or mark == known
  if known == '' or match(mark, '^[^.]*') ~= lineage then
    others[#others + 1] = mark
  elseif is_known then
    own[#own + 1] = mark -- later ones may be of another process, which has not written its snapshot yet
  end
end
if not is_known then
  return { 'unknown' }
end
local function is_replaced()
  return (call('HGET', sequences, '!closing') or '0') ~= ARGV[3]
    or string.find(call('GET', KEYS[2]) or '', ' restoring ', 1, true) ~= nil
end

if added ~= '' then
  local lost = sentinels.lost(sequences)
  if lost then
    return { 'damaged', lost }
  elseif is_replaced() then
    return { 'replaced' }
  end
  local marks = {}
  for i = math.max(1, #others - OTHERS + 1), #others do
    marks[#marks + 1] = others[i]
  end
  for _, mark in ipairs(own) do
    marks[#marks + 1] = mark
  end
  marks[#marks + 1] = added
  call('HSET', sequences, FIELD, table.concat(marks, ' '))
end
return { 'marked' }
