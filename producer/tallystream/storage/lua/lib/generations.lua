-- generations: reads which generation of a partition's counters is live, and which rules count it.

-- Returns the live generation as a text, and after a space the number of the rules that count it, if they have one.
-- If the partition is closed, ' closed' follows. During a restore, ' restoring', a number and a token follow. In both
-- cases, no generation is live. The key of a closed partition stays when its topic is dropped. Returns '' if the key
-- does not exist: nothing is live, because the topic was given up, the server was emptied, or the key was lost.
local function live(key)
  return redis.call('GET', key) or ''
end

-- Returns whether a generation is live: the partition is neither closed nor unknown.
local function is_open(key)
  return string.find(live(key), '^%d+ ?%d*$') ~= nil
end

-- Returns `nil` if a batch may be counted, else the reply that refuses it: {"switched"}, or {"outdated", number} if the
-- partition is counted by newer rules already, with their number, or {"damaged", key} if the key was lost. `wanted` is
-- the live generation and the number of the rules of the batch, in the form that `live` returns; or the value that the
-- key has during the restore that counts the batch. If the rules of the batch are newer than those that count the
-- partition, the second value is a change. Pass it to `follow` when the script writes: so a batch that is refused later
-- changes nothing.
local function refusal(key, stream, wanted)
  local present = live(key)
  if present == '' then
    return { 'damaged', require('tallystream.storage.lua.lib.sentinels').lost(key) or key }
  elseif present ~= wanted and string.find(wanted, ' restoring ', 1, true) then
    return { 'switched' }
  elseif present ~= wanted then
    return require('tallystream.storage.lua.lib.revisions').check(key, stream, present, wanted)
  end
end

-- Makes newer rules count the partition, if there is a change: see `refusal`. Nothing fails.
local function follow(change)
  if change then
    require('tallystream.storage.lua.lib.revisions').write(change)
  end
end

return { live = live, is_open = is_open, refusal = refusal, follow = follow }
