#!lua
-- adopt_rules: records that metrics are counted by published rules from now on, also if no event of them arrives.
--
-- KEYS[1] ledger (hash) of a generation   KEYS[2] its `forgotten` (hash)
-- ARGV[1] rules, msgpack, in the form of `rules` in rules/plan.lua
--
-- Returns {"adopted", metric, ...}   these metrics were counted by other rules before
--
-- Invariant: a metric that was never counted gets no parts: nothing of it can be lacking.
local parts = require('tallystream.storage.lua.rules.parts')

redis.call('HLEN', KEYS[2])
return { 'adopted', unpack(parts.update(KEYS[1], cmsgpack.unpack(ARGV[1]), true)) }
