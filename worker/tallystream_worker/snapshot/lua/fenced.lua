#!lua
-- fenced: runs a write command of a restore, unless another restore has taken over.
--
-- KEYS[1] the key that shows which restore may write   KEYS[2..] the keys of the command
-- ARGV[1] the value of KEYS[1] while this restore may write   ARGV[2..] the command and its arguments
--
-- Returns {"done", reply}   the reply of the command
--         {"overtaken"}     KEYS[1] has another value: nothing was changed
--
-- Invariant: a restore that was paused, and then continues, changes nothing that a later restore has written.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return { 'overtaken' }
end
return { 'done', redis.call(unpack(ARGV, 2)) }
