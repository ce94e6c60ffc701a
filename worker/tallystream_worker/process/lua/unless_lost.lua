#!lua
-- unless_lost: runs a write command in a partition, unless the partition has lost a key.
--
-- KEYS[1] a key of the partition that lib/sentinels.lua knows   KEYS[2] the key that the command writes
-- ARGV[1..] the command and its arguments
--
-- Returns {"done", reply}    the reply of the command
--         {"damaged", key}   the partition has lost this key (see lib/sentinels.lua); nothing was changed
-- Raises the error of the command.
--
-- Invariant: a partition that has lost all its keys gets no key that looks as if something of it were left.
local lost = require('tallystream.storage.lua.lib.sentinels').lost(KEYS[1])
if lost then
  return { 'damaged', lost }
end
return { 'done', redis.call(unpack(ARGV)) }
