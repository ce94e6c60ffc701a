-- revisions: decides about a batch by other rules than those that count its partition.
--
-- Invariant: the numbers of the rules that count a generation never go down. So a partition has one place in its log at
-- which it changed to newer rules, and this place is recorded.
local streams = require('tallystream.storage.lua.lib.streams')
local call = redis.call

-- Returns the ID after an ID.
local function following(id)
  local milliseconds, sequence = string.match(id, '^(%d+)%-(%d+)$')
  return string.format('%s-%.0f', milliseconds, sequence + 1)
end

-- Returns two IDs: entries before the first one are counted, and the second one is the last of the stream.
local function place(stream, group)
  local last = streams.last_id(stream)
  local found = last ~= '' and streams.group(stream, group)
  if not found then
    return '0-1', last == '' and '0-0' or last
  end
  if found.pending > 0 then
    return call('XPENDING', stream, group)[2], last
  end
  return following(found['last-delivered-id']), last
end

-- Returns `nil` and a change, for `write`, if the batch may be counted: its rules, which are newer, count the partition
-- from then on. Else returns the reply that refuses it, see `generations.refusal`. Nothing is written. Call it before
-- the entries of the batch are acknowledged, because the change has the place in the log.
local function check(key, stream, present, wanted)
  local generation, number = string.match(wanted, '^(%d+) ?(%d*)$')
  local live, counting = string.match(present, '^(%d+) ?(%d*)$') -- no match if the partition is closed
  if live ~= generation then
    return { 'switched' }
  end
  local before, after = tonumber(counting) or 0, tonumber(number) or 0
  if after < before then
    return { 'outdated', counting }
  end
  local change = { key = key, wanted = wanted }
  if before > 0 then
    local prefix, group = string.gsub(key, 'live$', ''), 'tally'
    if generation ~= '1' then
      prefix, group = prefix .. 'g' .. generation .. ':', group .. '-' .. generation
    end
    local first, last = place(stream, group)
    change.adopted, change.ledger = prefix .. 'adopted', prefix .. 'ledger'
    change.number, change.place = number, first .. ' ' .. last
    call('HLEN', change.adopted) -- raises an error if the key has another type
  end
  return nil, change
end

-- Makes the rules of a change count the partition. Nothing fails.
local function write(change)
  if change.adopted then
    local added = call('HSET', change.adopted, change.number, change.place)
    call('HINCRBY', change.ledger, 'entries:adopted', added) -- by this number, it is noticed if places were lost
  end
  call('SET', change.key, change.wanted)
end

return { check = check, write = write }
