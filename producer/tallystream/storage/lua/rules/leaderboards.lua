-- leaderboards: a sorted set keeps the subjects with the largest values of a counter.
local chunks = require('tallystream.storage.lua.lib.chunks')
local numbers = require('tallystream.storage.lua.lib.numbers')

local call = redis.call
local number_string = numbers.number_string

-- Returns the ledger field with the bound of a leaderboard: of all time (`nth` is 0), or of all buckets of a window.
local function bound_field(rule, nth)
  local window = nth > 0 and ':' .. string.match(rule.windows[nth], '(%l+):[^:]+:$') or ''
  return 'unlisted' .. window .. '@' .. rule.metric
end

-- Returns a new plan for the leaderboard at `key`, of the nth window (0: of all time). `entering` and `sinking` are
-- lists of score, member, ... A value below `last` need not enter, because the leaderboard is full and its smallest
-- value is larger.
local function open(self, rule, key, nth)
  local last = -math.huge
  if call('ZCARD', key) >= rule.top then
    last = tonumber(call('ZRANGE', key, 0, 0, 'WITHSCORES')[2])
  end
  local board = { key = key, nth = nth, length = rule.top, entering = {}, sinking = {}, last = last }
  self.boards[#self.boards + 1] = board
  return board
end

-- Raises the bound of a full leaderboard to its smallest value, because this value may fall now.
--
-- Invariant: the value of a subject that is not listed is at most the smallest value of the leaderboard, if it is full,
-- or at most its bound. A subject is cut off at a moment when its value is at most the smallest one.
local function raise_bound(self, rule, board)
  local field = bound_field(rule, board.nth)
  local known = self.bounds[field] or tonumber(call('HGET', self.ledger_key, field) or '')
  self.bounds[field] = math.max(known or board.last, board.last)
  board.is_bounded = true
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
    if not board.is_bounded then
      raise_bound(self, rule, board)
    end
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
  for field, bound in pairs(self.bounds) do
    call('HSET', self.ledger_key, field, number_string(bound))
  end
  for _, board in ipairs(self.boards) do
    write_board(board)
  end
end

return { bound_field = bound_field, enter = enter, open = open, raise_bound = raise_bound, write = write }
