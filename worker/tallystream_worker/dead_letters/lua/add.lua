-- add: adds dead letters in the call that acknowledges or removes their entries.
--
-- add(stream, first) reads ARGV[first..]: each dead letter is the number of arguments that follow, then the fields and
-- values of its entry in the dead stream. Check the type of `stream` before the first write.
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
