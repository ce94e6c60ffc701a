-- bloom: the positions of the bits that mark an ID in a Bloom filter.
local BLOOM_BITS, BLOOM_HASHES = 8388608, 7 -- 1 MiB, an approximation: with 400,000 IDs, 1 in 6,600 counts as a copy

-- Returns the positions of the bits that mark an ID: double hashing (Kirsch and Mitzenmacher, 2006) of its SHA-1.
local function positions(field)
  local digest = redis.sha1hex(field)
  local first, step = tonumber(string.sub(digest, 1, 8), 16), tonumber(string.sub(digest, 9, 16), 16)
  local found = {}
  for n = 1, BLOOM_HASHES do
    found[n] = string.format('%.0f', (first + n * step) % BLOOM_BITS)
  end
  return found
end

-- Returns whether all bits at these positions are set in the filter at `key`.
local function contains(key, found)
  local gets = {}
  for n, position in ipairs(found) do
    gets[3 * n - 2], gets[3 * n - 1], gets[3 * n] = 'GET', 'u1', position
  end
  return math.min(unpack(redis.call('BITFIELD_RO', key, unpack(gets)))) == 1
end

return { contains = contains, positions = positions }
