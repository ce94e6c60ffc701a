-- uniques: estimates how many different actors a subject had, with one HyperLogLog for each bucket. Adding an actor
-- again changes nothing.
local changes = require('tallystream.storage.lua.rules.changes')
local chunks = require('tallystream.storage.lua.lib.chunks')

local call, try, max = redis.call, redis.pcall, math.max
local HYLL = 1213811788 -- "HYLL" as a number: the first four bytes of a HyperLogLog
local SLACK = 3600000 -- milliseconds that a key may be kept longer, so that few writes need to set its expiry again

-- Plans the actors of one subject: `actors` = { subject, actor, ... }. Rejects it if its key is not a HyperLogLog.
local function plan_subject(self, rule, key, actors, expiry)
  -- PFCOUNT would also check the key, but it caches its result in the key, which adds a write to the append-only file.
  local head = try('BITFIELD_RO', key, 'GET', 'u32', 0, 'GET', 'u8', 32)
  if head.err or (head[1] ~= 0 and (head[1] ~= HYLL or head[2] > 1)) then
    changes.reject(self, rule, actors[1])
  end
  self.uniques[#self.uniques + 1] = { key = key, actors = actors, expiry = expiry, is_new = head[1] == 0 }
end

-- Plans the actors of the batch. Must run after totals.plan, which finds the subjects beyond a quota: they get no keys.
local function plan(self)
  for _, bucket in ipairs(self.batch.uniques) do
    local rule, prefix, expiry, by_subject = self.rules[bucket[1]], bucket[2], bucket[3], bucket[4]
    local overflow = self.overflow[rule] and self.overflow[rule].known
    for _, actors in ipairs(by_subject) do
      if not (overflow and overflow[actors[1]]) then
        plan_subject(self, rule, prefix .. actors[1], actors, expiry)
      end
    end
  end
end

-- Adds the actors and sets the expiry of the keys. `soonest` is the earliest millisecond at which a key that was just
-- written may expire.
local function write(self, now, soonest)
  for _, unique in ipairs(self.uniques) do
    local key, expiry = unique.key, unique.expiry
    chunks.each(try, 'PFADD', key, unique.actors, 2) -- fails only if the bytes of the HyperLogLog are damaged
    if expiry > 0 then
      -- There are many such keys, and a read is cheaper than a write: if the expiry is late enough, keep it.
      local wanted = max(expiry, soonest)
      local kept_until = unique.is_new and 0 or now + call('PTTL', key)
      if kept_until < wanted - 1000 or kept_until > wanted + SLACK then
        call('PEXPIREAT', key, string.format('%.0f', expiry < soonest and soonest + SLACK or expiry))
      end
    end
  end
end

return { plan = plan, write = write }
