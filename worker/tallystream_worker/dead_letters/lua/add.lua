-- add: appends dead letters to the dead stream, in the call that acknowledges or removes their entries.
--
-- add(stream, first) reads ARGV[first..]. For each dead letter: the number of arguments that follow, then the names and
-- values of its fields in the dead stream. The caller checks the type of `stream` before its first write.
local call = redis.call

local function add(stream, first)
  local at = first
  while ARGV[at] do
    local count = tonumber(ARGV[at])
    call('XADD', stream, '*', unpack(ARGV, at + 1, at + count))
    at = at + count + 1
  end
end

return add
