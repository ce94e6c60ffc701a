#!lua
-- apply: acknowledges the entries of a batch and adds its deltas and dead letters, in one call.
--
-- KEYS[1] stream   KEYS[2] dead stream   KEYS[3] ledger (hash)   KEYS[4] live generation
-- ARGV[1] group    ARGV[2] batch, msgpack: { ids = { entry ID, ... }, and the fields that rules/plan.lua lists }
-- ARGV[3] generation that must be the live one, then a space and the number of the rules of the batch; or "" for any;
--         or the value of KEYS[4] during the restore that counts the batch
-- ARGV[4..] dead letters, as dead_letters/lua/add.lua reads them
--
-- Returns {"applied"}
--         {"stale", ID, ...}                   some IDs are no longer pending; these still are
--         {"switched"}                         another generation is live now, or none: see lib/generations.lua
--         {"outdated", number}                 rules with this higher number count the partition now
--         {"early", ID, ...}                   these pending entries must be counted first, see rules/resets.lua; only
--                                              if the batch has a reset, or ARGV[3] names no live generation
--         {"rejected", metric, subject, reason, ...}   these counters cannot take their delta,
--                                              see rules/rejection.lua
--         {"damaged", key [, type]}            the partition has lost this key (see lib/sentinels.lua)
-- Raises NOGROUP if the stream or the group is gone; a caller must not take this for "already applied".
--
-- It also removes keys of periods that no uncounted entry can change any more, see rules/forget_periods.lua.
--
-- Invariant: an entry that exists is acknowledged in the call that adds its deltas or its dead letter, and in no other
-- call of a worker. Lua has no rollback, so everything that can fail is checked before the deltas are written: the IDs,
-- every counter, the type of every key. Only a change of the rules is recorded before, see rules/plan.lua.
-- With `#!lua`, the server rejects the whole call if it is out of memory, is read-only or cannot write its append-only
-- file. The writes are atomic: the server runs the call as one.
local generations = require('tallystream.storage.lua.lib.generations')
local plan = require('tallystream.storage.lua.rules.plan')
local write = require('tallystream.storage.lua.rules.write')
local call = redis.call

local stream, dead = KEYS[1], KEYS[2]
local group = ARGV[1]
local refusal, change
if ARGV[3] ~= '' then
  refusal, change = generations.refusal(KEYS[4], stream, ARGV[3])
end
if refusal then
  return refusal
end
if call('HEXISTS', string.sub(stream, 1, -7) .. 'seq', '!begun') == 0 then
  local lost = require('tallystream.storage.lua.lib.sentinels').lost(stream)
  if lost then
    return { 'damaged', lost }
  end
end
local batch = cmsgpack.unpack(ARGV[2])
local ids = batch.ids

-- Check each ID by itself: XACK returns only how many IDs it acknowledged, not which.
local pending = {}
for i = 1, #ids do
  if #call('XPENDING', stream, group, ids[i], ids[i], 1) == 1 then
    pending[#pending + 1] = ids[i]
  end
end
if #pending < #ids then
  return { 'stale', unpack(pending) }
end

-- The live generation counts each reset in the call that appends it. Only other generations have resets to count.
if ids[1] and (batch.resets or not string.find(ARGV[3], '^%d+ ?%d*$')) then
  local found = require('tallystream.storage.lua.rules.resets').earlier(stream, group, ids, batch.resets)
  if found then
    return { 'early', unpack(found) }
  end
end

local planned = plan(batch, KEYS[3])
if planned.lost then
  return { 'damaged', planned.lost, planned.lost_type }
end
if #planned.rejected > 0 then
  return require('tallystream.storage.lua.rules.rejection')(planned)
end
if ARGV[4] then
  call('XLEN', dead)
end
local periods, forgetting = string.gsub(KEYS[3], 'ledger$', 'periods'), nil
local kind = call('TYPE', periods).ok
if kind ~= 'zset' and kind ~= 'none' then
  return { 'damaged', periods, kind }
elseif kind == 'zset' then
  forgetting = require('tallystream.storage.lua.rules.forget_periods').plan(stream, group, ids, planned)
end

-- Nothing after this line can fail.
generations.follow(change)
call('XACK', stream, group, unpack(ids))
if ARGV[4] then
  require('tallystream_worker.dead_letters.lua.add')(dead, 4)
end
write(planned)
if forgetting then
  require('tallystream.storage.lua.rules.forget_periods').write(forgetting)
end
return { 'applied' }
