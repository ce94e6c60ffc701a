#!lua
-- claim: agrees on which entries go into the next file of the archive, so that whoever writes it writes the same.
--
-- KEYS[1] stream   KEYS[2] archive (hash)
-- ARGV[1] group   ARGV[2] the ID up to which everything is archived   ARGV[3] first   ARGV[4] last   ARGV[5] entries
--
-- Returns {"claimed", first, last, entries}   the range that is being written: the caller's, or an earlier claim
--         {"moved"}                           the group is elsewhere by now: somebody else has written it
-- and raises NOGROUP where the group is gone.
--
-- Invariant: at most one range is open, it begins right behind the group's position, and nothing of it is trimmed.
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local about = {}
  for i = 1, #group, 2 do
    about[group[i]] = group[i + 1]
  end
  if about.name == ARGV[1] then
    if about['last-delivered-id'] ~= ARGV[2] then
      return { 'moved' }
    end
    if redis.call('HEXISTS', KEYS[2], 'first') == 0 then
      redis.call('HSET', KEYS[2], 'first', ARGV[3], 'last', ARGV[4], 'entries', ARGV[5])
    end
    return { 'claimed', unpack(redis.call('HMGET', KEYS[2], 'first', 'last', 'entries')) }
  end
end
return { err = 'NOGROUP ' .. KEYS[1] .. ' has no group ' .. ARGV[1] }
