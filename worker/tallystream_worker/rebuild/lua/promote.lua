#!lua
-- promote: makes another generation the live one in the meta hash, which readers follow.
--
-- KEYS[1] meta (hash)   ARGV[1] generation
--
-- Returns {"promoted"}   the generation is live; it may have been live before
--
-- Invariant: `rules` are those of `generation`; the rules of each other existing generation are in `rules@<n>`.
local call = redis.call
local present = call('HGET', KEYS[1], 'generation') or '1'
local rules = call('HGET', KEYS[1], 'rules@' .. ARGV[1])
if present ~= ARGV[1] then
  if not rules then
    error({ err = 'ERR ' .. KEYS[1] .. ' has no field rules@' .. ARGV[1] })
  end
  call('HSET', KEYS[1], 'generation', ARGV[1], 'rules@' .. present, call('HGET', KEYS[1], 'rules'), 'rules', rules)
  call('HDEL', KEYS[1], 'rules@' .. ARGV[1])
end
if call('HGET', KEYS[1], 'building') == ARGV[1] then
  call('HDEL', KEYS[1], 'building')
end
return { 'promoted' }
