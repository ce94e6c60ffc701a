-- leaderboards: a sorted set keeps the subjects with the largest values of a counter.
local changes = require('tallystream.storage.lua.rules.changes')
local chunks = require('tallystream.storage.lua.lib.chunks')
local numbers = require('tallystream.storage.lua.lib.numbers')

local call = redis.call
local number_string = numbers.number_string

-- Returns a new plan for the leaderboard at `key`. `entering` and `sinking` are lists of score, member, ... A value
-- below `last` need not enter, because the leaderboard is full and its smallest value is larger.
local function open(self, rule, key)
  local last = -math.huge
  if call('ZCARD', key) >= rule.top then
    last = tonumber(call('ZRANGE', key, 0, 0, 'WITHSCORES')[2])
  end
  local board = { key = key, length = rule.top, entering = {}, sinking = {}, last = last }
  self.boards[#self.boards + 1] = board
  return board
end

-- Adds the new value of a subject to the plan of a leaderboard.
local function enter(self, rule, board, subject, value, delta)
  if value >= board.last then
    local entering = board.entering
    local n = #entering
    entering[n + 1], entering[n + 2] = number_string(value), subject
  elseif delta < 0 then
    -- If the subject is on the leaderboard, a subject that was cut off earlier may belong there now.
    local sinking = board.sinking
    local n = #sinking
    sinking[n + 1], sinking[n + 2] = number_string(value), subject
    changes.add_to_ledger(self, 'shrunk@' .. rule.metric, 1)
  end
end

local function write_board(board)
  chunks.each(call, 'ZADD', board.key, board.entering, 1)
  local sinking = board.sinking
  for first = 1, #sinking, chunks.SIZE do
    call('ZADD', board.key, 'XX', unpack(sinking, first, math.min(first + chunks.SIZE - 1, #sinking)))
  end
  call('ZREMRANGEBYRANK', board.key, 0, -(board.length + 1))
end

local function write(self)
  for _, board in ipairs(self.boards) do
    write_board(board)
  end
end

return { enter = enter, open = open, write = write }
