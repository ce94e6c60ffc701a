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

-- Returns `nil` if the batch may be counted: its rules, which are newer, count the partition from now on. Else returns
-- the reply that refuses it, see `generations.refusal`.
local function follow(key, stream, present, wanted)
  local generation, number = string.match(wanted, '^(%d+) ?(%d*)$')
  local live, counting = string.match(present, '^(%d+) ?(%d*)$') -- no match if the partition is closed
  if live ~= generation then
    return { 'switched' }
  end
  local before, after = tonumber(counting) or 0, tonumber(number) or 0
  if after < before then
    return { 'outdated', counting }
  end
  if before > 0 then
    local prefix, group = string.gsub(key, 'live$', ''), 'tally'
    if generation ~= '1' then
      prefix, group = prefix .. 'g' .. generation .. ':', group .. '-' .. generation
    end
    local first, last = place(stream, group)
    local added = call('HSET', prefix .. 'adopted', number, first .. ' ' .. last)
    call('HINCRBY', prefix .. 'ledger', 'entries:adopted', added) -- by this number, it is noticed if places were lost
  end
  call('SET', key, wanted)
end

return follow
