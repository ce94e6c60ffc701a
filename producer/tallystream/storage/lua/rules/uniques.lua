-- uniques: estimates how many different actors a subject had, with one HyperLogLog for each bucket. Adding an actor
-- again changes nothing.
local buckets = require('tallystream.storage.lua.lib.buckets')
local changes = require('tallystream.storage.lua.rules.changes')
local chunks = require('tallystream.storage.lua.lib.chunks')

local try = redis.pcall
local HYLL = 1213811788 -- "HYLL" as a number: the first four bytes of a HyperLogLog

-- Plans the actors of one subject: `actors` = { subject, actor, ... }. Rejects it if its key is not a HyperLogLog.
-- Returns whether the key is new.
local function plan_subject(self, rule, key, actors)
  -- PFCOUNT would also check the key, but it caches its result in the key, which adds a write to the append-only file.
  local head = try('BITFIELD_RO', key, 'GET', 'u32', 0, 'GET', 'u8', 32)
  if head.err then
    changes.reject_other_type(self, rule, actors[1], key, 'string')
  elseif head[1] ~= 0 and (head[1] ~= HYLL or head[2] > 1) then
    changes.reject(self, rule, actors[1])
  end
  self.uniques[#self.uniques + 1] = { key = key, actors = actors }
  return head[1] == 0
end

-- Returns whether a state that events need was removed: they are late, so they add no actors. `states`: see plan.lua.
local function was_removed(self, states)
  for _, state in ipairs(states) do
    if state[2] <= (self.forgotten_ends[state[1]] or -1) then
      return true
    end
  end
  return false
end

-- Plans the actors of the batch. Must run after totals.plan, which finds the subjects beyond a quota: they get no keys.
local function plan(self)
  for _, bucket in ipairs(self.batch.uniques) do
    local rule, prefix, closes, finish, states, by_subject = self.rules[bucket[1]], unpack(bucket, 2)
    local kind = 'unique:' .. rule.metric
    local overflow = self.overflow[rule] and self.overflow[rule].known
    local is_gone = was_removed(self, states) or was_removed(self, { { kind, finish } })
    if not is_gone then
      local period = { kind, finish, closes }
      if buckets.leave_out(self, prefix, closes) then
        period[4], by_subject = prefix, {}
      end
      for _, actors in ipairs(by_subject) do
        if not (overflow and overflow[actors[1]]) then
          -- There are many such keys: register each only when it is created.
          if plan_subject(self, rule, prefix .. actors[1], actors) then
            period[#period + 1] = prefix .. actors[1]
          end
        end
      end
      self.unique_periods[#self.unique_periods + 1] = period
    end
  end
end

-- Adds the actors.
local function write(self)
  for _, unique in ipairs(self.uniques) do
    chunks.each(try, 'PFADD', unique.key, unique.actors, 2) -- fails only if the bytes of the HyperLogLog are damaged
  end
end

return { plan = plan, write = write }
