#!lua flags=no-writes
-- scan: calls SCAN or HSCAN once, while the slot of a key is on one node as a whole.
--
-- KEYS[1] a key; the hash to read if ARGV[1] is HSCAN   ARGV[1] SCAN or HSCAN   ARGV[2] cursor   ARGV[3..] options
--
-- Returns {"scanned", the replication ID of the server, next cursor, { key, ... }}
--         {"scanned", the replication ID of the server, next cursor, { field, value, ... }}   for HSCAN
--
-- Invariant: while a slot is on two nodes, the node refuses this call, as that of any script: see `guarded` of the
-- cluster client. SCAN itself would be executed, and would leave out the keys that the other node has. The replication
-- ID changes with the process and with the role of the server, so a cursor has a meaning as long as the ID is the same.
local call = redis.call
local id = string.match(call('INFO', 'replication'), 'master_replid:(%w+)')
local found
if ARGV[1] == 'HSCAN' then
  found = call('HSCAN', KEYS[1], unpack(ARGV, 2))
else
  found = call('SCAN', unpack(ARGV, 2))
end
return { 'scanned', id, found[1], found[2] }
