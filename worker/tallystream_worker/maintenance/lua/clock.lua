#!lua
-- clock: reads the clock of a partition's server, and the newest stream ID.
--
-- KEYS[1] stream
--
-- Returns {"clock", milliseconds since 1970 by the server's clock, milliseconds of the newest stream ID (0 for none)}
--
-- Invariant: both are from one moment, and nothing is changed.
local clock = require('tallystream.storage.lua.lib.clock')
local streams = require('tallystream.storage.lua.lib.streams')
local newest = streams.parse_id(streams.last_id(KEYS[1])) or 0
return { 'clock', string.format('%.0f', clock.milliseconds()), string.format('%.0f', newest) }
