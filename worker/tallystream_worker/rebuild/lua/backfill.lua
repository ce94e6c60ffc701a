#!lua
-- backfill: counts entries that are not read through a consumer group, each once, in the order of their source.
--
-- KEYS[1] mark   KEYS[2] dead stream   KEYS[3] ledger (hash)
-- ARGV[1] batch, msgpack: the fields that rules/plan.lua lists   ARGV[2] the mark before the call, "" for none
-- ARGV[3] the mark after it   ARGV[4..] dead letters, as dead_letters/lua/add.lua reads them
--
-- Returns {"applied"}
--         {"at", mark}                         the stored mark is this one ("" for none); nothing was changed
--         {"rejected", metric, subject, reason, ...}   these counters cannot take their delta,
--                                              see rules/rejection.lua; nothing was changed
--         {"damaged", key [, type]}            the generation has lost this key; nothing was changed
--
-- Invariant: the mark moves only in the call that adds the deltas, so the source is counted exactly up to the mark.
local add_dead_letters = require('tallystream_worker.dead_letters.lua.add')
local plan = require('tallystream.storage.lua.rules.plan')
local rejection = require('tallystream.storage.lua.rules.rejection')
local write = require('tallystream.storage.lua.rules.write')
local call = redis.call

local mark = call('GET', KEYS[1]) or ''
if mark ~= ARGV[2] then
  return { 'at', mark }
elseif mark == '' and call('HEXISTS', KEYS[3], 'entries:backfilled') == 1 then
  return { 'damaged', KEYS[1] }
end
local planned = plan(cmsgpack.unpack(ARGV[1]), KEYS[3])
if planned.lost then
  return { 'damaged', planned.lost, planned.lost_type }
end
if #planned.rejected > 0 then
  return rejection(planned)
end
call('XLEN', KEYS[2])

-- From here on nothing fails.
call('SET', KEYS[1], ARGV[3])
add_dead_letters(KEYS[2], 4)
write(planned)
return { 'applied' }
