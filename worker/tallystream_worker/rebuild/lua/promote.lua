#!lua
-- promote: makes another generation the one that is read, in the meta hash.
--
-- KEYS[1] meta (hash)   ARGV[1] generation
--
-- Returns {"promoted"}   also if it was read before
--
-- Invariant: `rules` are those of `generation`; those of every other generation that is there are in `rules@<n>`.
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
