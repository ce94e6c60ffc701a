-- buckets: when the buckets of windows, their leaderboards and their uniques expire.
--
-- A bucket closes when its retention has passed. An event that the server receives later is not added to it, and no
-- read uses it. Its key is kept for a while longer, so that entries that arrived in time can be counted, and a reader
-- that has just found the bucket open can read it. After that the key is gone, and counting must not create it again:
-- it would have only the last events.
local KEPT = 3600000 -- milliseconds that a key is kept after its bucket closes

-- Returns true if the key of a bucket that closes at millisecond `closes` (0: never) has expired at millisecond `now`.
local function has_expired(closes, now)
  return closes > 0 and closes + KEPT <= now
end

-- Makes the key of a bucket expire.
local function expire(key, closes)
  if closes > 0 then
    redis.call('PEXPIREAT', key, string.format('%.0f', closes + KEPT))
  end
end

return { expire = expire, has_expired = has_expired, KEPT = KEPT }
