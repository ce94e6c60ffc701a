-- sketches: estimates counters in bounded memory (count-min), for metrics that are not exact and for subjects beyond a
-- quota. A sketch is linear, so the order of the events does not matter. The estimate is a subject's smallest cell.
local changes = require('tallystream.storage.lua.rules.changes')
local numbers = require('tallystream.storage.lua.lib.numbers')

local call, number_string = redis.call, numbers.number_string
local ROWS, WIDTH = 4, 32768

-- Adds the delta of a subject beyond the quota of its rule: the sketch counts it, and it gets no separate keys.
local function add_subject(self, rule, subject, delta)
  local overflow = self.overflow[rule]
  if not overflow then
    overflow = { subjects = {}, deltas = {}, known = {} }
    self.overflow[rule] = overflow
  end
  local n = #overflow.subjects + 1
  overflow.subjects[n], overflow.deltas[n] = subject, delta
  overflow.known[subject] = true
end

local function sum_of(deltas)
  local sum = 0
  for i = 1, #deltas do
    sum = sum + deltas[i]
  end
  return sum
end

-- Returns whether an estimate falls.
local function falls(deltas)
  for i = 1, #deltas do
    if deltas[i] < 0 then
      return true
    end
  end
  return false
end

-- Plans the sketches of the batch. Must run after totals.plan, which finds the subjects beyond a quota.
local function plan(self)
  for _, column in ipairs(self.batch.sketches) do
    local rule, subjects, deltas = self.rules[column[1]], column[2], column[3]
    if self.overflow[rule] then -- events with an ID
      for i, subject in ipairs(subjects) do
        add_subject(self, rule, subject, deltas[i])
      end
    else
      self.overflow[rule] = { subjects = subjects, deltas = deltas }
    end
    changes.add_to_ledger(self, 'total@' .. rule.metric, sum_of(deltas))
  end
  for rule, overflow in pairs(self.overflow) do
    local leaderboards = rule.top > 0 and require('tallystream.storage.lua.rules.leaderboards')
    call('STRLEN', rule.sketch) -- a key of another type is an error here, before anything is written
    changes.add_to_ledger(self, 'sketched@' .. rule.metric, sum_of(overflow.deltas))
    local board = leaderboards and leaderboards.open(self, rule, rule.tops[1], 0)
    if board and board.last > -math.huge and falls(overflow.deltas) then
      leaderboards.raise_bound(self, rule, board) -- the estimate of a listed subject may fall
    end
    self.sketches[#self.sketches + 1] = {
      key = rule.sketch,
      subjects = overflow.subjects,
      deltas = overflow.deltas,
      board = board,
    }
  end
end

-- Returns the arguments of BITFIELD that add `delta` to one cell of a subject in each row.
local function increments(subject, delta)
  local digest = redis.sha1hex(subject)
  local arguments = {}
  for row = 1, ROWS do
    local cell = (row - 1) * WIDTH + tonumber(string.sub(digest, 8 * row - 7, 8 * row), 16) % WIDTH
    arguments[4 * row - 3], arguments[4 * row - 2] = 'INCRBY', 'i64'
    arguments[4 * row - 1], arguments[4 * row] = '#' .. string.format('%.0f', cell), number_string(delta)
  end
  return arguments
end

-- Writes the sketches. Must run before leaderboards.write: the reply to the write has a subject's estimate.
local function write(self)
  for _, sketch in ipairs(self.sketches) do
    local board = sketch.board
    for i, subject in ipairs(sketch.subjects) do
      local cells = call('BITFIELD', sketch.key, unpack(increments(subject, sketch.deltas[i])))
      local estimate = math.min(unpack(cells))
      if board and (estimate >= board.last or sketch.deltas[i] < 0) then
        local n = #board.entering
        board.entering[n + 1], board.entering[n + 2] = number_string(estimate), subject
      end
    end
  end
end

return { add_subject = add_subject, plan = plan, write = write }
