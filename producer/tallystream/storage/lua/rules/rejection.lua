-- rejection: builds the reply of a script whose batch was rejected: {"rejected", metric, subject, ...}.
local chunks = require('tallystream.storage.lua.lib.chunks')

local function rejection(planned)
  -- unpack takes at most a chunk of values. The caller tries again without these counters and then gets the rest.
  return { 'rejected', unpack(planned.rejected, 1, math.min(#planned.rejected, chunks.SIZE)) }
end

return rejection
