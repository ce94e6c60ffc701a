-- Part of rules.lua: copy on write for snapshots. While a snapshot is being read (the key `cut` exists beside the
-- ledger), whoever is about to write says what was there before, so that the reader has the values of one moment.
-- The first word about a key or field counts. Nothing here changes a counter, and a snapshot that nobody finishes
-- takes its traces with it: everything has the time to live of `cut`.
--
-- `cut:before` is a list of: 's', n, then n times key, value      strings; '' where there was none
--                            'h', key, n, then n times field, value
--                            'c', key, 1 or 0                     a copy is at `cut:copy:<key>`; or there was none
local function before(result)
  local cut = string.gsub(KEYS[3], 'ledger$', 'cut')
  local left = call('PTTL', cut)
  if left < 0 then
    return
  end
  local list = cut .. ':before'

  local function say(head, names, values)
    local words, at = head, #head
    words[at + 1] = #names
    for i, name in ipairs(names) do
      words[at + 2 * i], words[at + 2 * i + 1] = name, values[i] or ''
    end
    call('RPUSH', list, unpack(words))
  end
  local function strings(names)
    for first = 1, #names, CHUNK do
      local part = {}
      for i = first, math.min(first + CHUNK - 1, #names) do
        part[#part + 1] = names[i]
      end
      say({ 's' }, part, call('MGET', unpack(part)))
    end
  end

  for _, writes in ipairs(result.strings) do
    local names = {}
    for i = 1, #writes, 2 do
      names[#names + 1] = writes[i]
    end
    strings(names)
  end
  local sets = {}
  for i, unique in ipairs(result.uniques) do
    sets[i] = unique[1]
  end
  strings(sets)
  for _, hash in ipairs(result.hashes) do
    for first = 1, #hash[2], 2 * CHUNK do
      local fields = {}
      for i = first, math.min(first + 2 * CHUNK - 1, #hash[2]), 2 do
        fields[#fields + 1] = hash[2][i]
      end
      say({ 'h', hash[1] }, fields, call('HMGET', hash[1], unpack(fields)))
    end
  end
  for _, bits in ipairs(result.bits) do
    if call('SADD', cut .. ':copied', bits[1]) == 1 then
      local copied = call('COPY', bits[1], cut .. ':copy:' .. bits[1], 'REPLACE')
      call('RPUSH', list, 'c', bits[1], copied)
      if copied == 1 then
        call('PEXPIRE', cut .. ':copy:' .. bits[1], left)
      end
      call('PEXPIRE', cut .. ':copied', left)
    end
  end
  call('PEXPIRE', list, left)
end
