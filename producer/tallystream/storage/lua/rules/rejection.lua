-- rejection: the reply of a script whose batch was rejected: {"rejected", metric, subject, ...}.
local chunks = require('tallystream.storage.lua.lib.chunks')

local function rejection(planned)
  -- A reply is as long as one call's arguments; the next try, without these totals, finds the rest.
  return { 'rejected', unpack(planned.rejected, 1, math.min(#planned.rejected, chunks.SIZE)) }
end

return rejection
