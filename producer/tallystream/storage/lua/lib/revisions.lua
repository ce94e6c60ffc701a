-- revisions: decides about a batch by other rules than those that count its partition.
--
-- Invariant: the numbers of the rules that count a generation never go down. So a partition has one place in its log at
-- which it changed to newer rules, and this place is recorded.
local maps = require('tallystream.storage.lua.lib.maps')
local streams = require('tallystream.storage.lua.lib.streams')
local call = redis.call
local PAGE = 100 -- entries that are read at a time
local MOST = 1000 -- with more pending entries, or more to read, later ones are taken for counted

-- Returns the ID after an ID.
local function following(id)
  local milliseconds, sequence = string.match(id, '^(%d+)%-(%d+)$')
  return string.format('%s-%.0f', milliseconds, sequence + 1)
end

-- Returns whether an entry after the first pending one may be counted. Then the place does not show by which rules the
-- entries were counted. Decided entries are left out: they are counted when they are appended. This reads at most about
-- 1,000 entries, so that the server is not blocked.
local function is_unordered(stream, found, first)
  if found.pending >= MOST then
    return true
  end
  local pending, from, read = {}, first, 0
  for _, each in ipairs(call('XPENDING', stream, found.name, '-', '+', MOST)) do
    pending[each[1]] = true
  end
  while true do
    local page = call('XRANGE', stream, from, found['last-delivered-id'], 'COUNT', PAGE)
    for _, entry in ipairs(page) do
      local fields = not pending[entry[1]] and maps.from_flat(entry[2])
      if fields and not (fields.v and tonumber(fields.d)) then
        return true
      end
    end
    read = read + #page
    if #page < PAGE then
      return false
    elseif read >= MOST then
      return true
    end
    from = '(' .. page[#page][1]
  end
end

-- Returns two IDs: entries before the first one are counted, and the second one is the last of the stream. The third
-- result is true if entries between the two may be counted, see `is_unordered`.
local function place(stream, group)
  local last = streams.last_id(stream)
  local found = last ~= '' and streams.group(stream, group)
  if not found then
    return '0-1', last == '' and '0-0' or last
  end
  if found.pending > 0 then
    local first = call('XPENDING', stream, group)[2]
    return first, last, is_unordered(stream, found, first)
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
    local first, last, unordered = place(stream, group)
    change.adopted, change.ledger = prefix .. 'adopted', prefix .. 'ledger'
    change.before, change.number, change.place, change.unordered = counting, number, first .. ' ' .. last, unordered
    call('HLEN', change.adopted) -- raises an error if the key has another type
  end
  return nil, change
end

-- Makes the rules of a change count the partition. Nothing fails.
local function write(change)
  if change.adopted then
    local added = call('HSET', change.adopted, change.number, change.place)
    call('HINCRBY', change.ledger, 'entries:adopted', added) -- by this number, it is noticed if places were lost
    if change.unordered then
      call('HSET', change.ledger, 'entries:unordered:' .. change.number, 1)
    end
    if not call('HGET', change.ledger, 'entries:first') then
      call('HSET', change.ledger, 'entries:first', change.before) -- no place was recorded before
    end
  end
  call('SET', change.key, change.wanted)
end

return { check = check, write = write }
