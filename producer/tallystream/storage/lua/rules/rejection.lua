-- rejection: builds the reply of a script whose batch was rejected: {"rejected", metric, subject, reason, ...}. The
-- subject is '' if no event of the metric can be counted. The reason is '' if the value of the counter cannot take its
-- delta; else it names a key of another type.
local chunks = require('tallystream.storage.lua.lib.chunks')

local function rejection(planned)
  -- unpack takes at most a chunk of values. The caller tries again without these counters and then gets the rest.
  return { 'rejected', unpack(planned.rejected, 1, math.min(#planned.rejected, 3 * chunks.SIZE)) }
end

return rejection
