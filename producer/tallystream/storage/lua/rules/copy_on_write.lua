-- copy_on_write: saves old values for a snapshot, before a script overwrites them: totals, buckets, limits, votes, IDs
-- and uniques. Sketches and their leaderboards are copied when the snapshot begins.
--
-- While a snapshot is being read, the key `cut` exists; it has the prefix of the ledger. Then each script that writes
-- counters first appends the old values to the list `cut:before`, so that the reader gets the values of one moment. If
-- the list has several values of a key or field, the first is the value of that moment. This module changes no counter.
-- All its keys have the time to live of `cut`, so an abandoned snapshot leaves nothing.
--
-- `cut:before` is a list of: 's', n, then n times key, value      strings; '' if the key was absent
--                            'h', key, n, then n times field, value
--                            'c', key, 1 or 0                     1: the copy is `cut:copy:<token>:<key>`; 0: no key
--                            'd', ID, n, then n words             a dead letter: see dead_letters/lua/remove.lua
local chunks = require('tallystream.storage.lua.lib.chunks')

local call, min = redis.call, math.min
local CHUNK = chunks.SIZE

-- Appends to the list: the words in `head`, the number of names, then each name and its value ('' if absent).
local function store(list, head, names, values)
  local words, at = head, #head
  words[at + 1] = #names
  for i, name in ipairs(names) do
    words[at + 2 * i], words[at + 2 * i + 1] = name, values[i] or ''
  end
  call('RPUSH', list, unpack(words))
end

local function store_strings(list, names)
  for first = 1, #names, CHUNK do
    local part = { unpack(names, first, min(first + CHUNK - 1, #names)) }
    store(list, { 's' }, part, call('MGET', unpack(part)))
  end
end

-- Returns the names in a list of name, value, ... from index `first` on; at most a chunk of them.
local function names_of(pairs_, first)
  local names = {}
  for i = first, min(first + 2 * CHUNK - 1, #pairs_), 2 do
    names[#names + 1] = pairs_[i]
  end
  return names
end

local function store_fields(list, key, writes)
  for first = 1, #writes, 2 * CHUNK do
    local fields = names_of(writes, first)
    store(list, { 'h', key }, fields, call('HMGET', key, unpack(fields)))
  end
end

-- Copies a whole key, once for each snapshot.
local function copy_key(list, cut, key, ttl)
  if call('SADD', cut .. ':copied', key) == 1 then
    local copy = cut .. ':copy:' .. call('GET', cut) .. ':' .. key
    local copied = call('COPY', key, copy, 'REPLACE')
    call('RPUSH', list, 'c', key, copied)
    if copied == 1 then
      call('PEXPIRE', copy, ttl)
    end
    call('PEXPIRE', cut .. ':copied', ttl)
  end
end

-- Saves the old values of the keys and fields that the batch will write. Must run before the first write. `ttl` is the
-- time to live of the key `cut`, in milliseconds.
local function copy_on_write(self, cut, ttl)
  local list = cut .. ':before'
  for _, writes in ipairs(self.strings) do
    store_strings(list, names_of(writes, 1)) -- at most a chunk of keys: see totals.lua
  end
  local sets = {}
  for i, unique in ipairs(self.uniques) do
    sets[i] = unique.key
  end
  store_strings(list, sets)
  for _, hash in ipairs(self.hashes) do
    store_fields(list, hash[1], hash[2])
  end
  for _, bits in ipairs(self.bits) do
    copy_key(list, cut, bits[1], ttl)
  end
  call('PEXPIRE', list, ttl)
end

return copy_on_write
