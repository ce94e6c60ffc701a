#!lua
-- adopt_rules: records that metrics are counted by published rules from now on, also if no event of them arrives.
--
-- KEYS[1] ledger (hash) of a generation   KEYS[2] its `forgotten` (hash)
-- ARGV[1] rules, msgpack, in the form of `rules` in rules/plan.lua   ARGV[2] 1 in a copy of a partition: it has no
-- sentinels
--
-- Returns {"adopted", metric, ...}   these metrics were counted by other rules before
--         {"damaged", key}           the partition has lost this key (see lib/sentinels.lua); nothing was changed
--
-- Invariant: a metric that was never counted gets no parts: nothing of it can be lacking.
local sentinels = require('tallystream.storage.lua.lib.sentinels')
local parts = require('tallystream.storage.lua.rules.parts')

local lost = ARGV[2] ~= '1' and sentinels.lost(KEYS[1])
if lost then
  return { 'damaged', lost }
end
redis.call('HLEN', KEYS[2])
return { 'adopted', unpack(parts.update(KEYS[1], cmsgpack.unpack(ARGV[1]), true)) }
