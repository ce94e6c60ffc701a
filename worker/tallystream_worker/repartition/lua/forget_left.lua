#!lua
-- forget_left: removes a topic from the topics that nothing uses, because its keys are removed.
--
-- KEYS[1] the root's meta (hash)   ARGV[1] the topic
--
-- Returns {"forgotten"}   the topic is not among them; it may not have been before
--
-- Invariant: topics that another process has added meanwhile stay.
local call = redis.call
local kept = {}
for word in string.gmatch(call('HGET', KEYS[1], 'left') or '', '%S+') do
  if string.match(word, '^(%d+):') ~= ARGV[1] then
    kept[#kept + 1] = word
  end
end
if #kept > 0 then
  call('HSET', KEYS[1], 'left', table.concat(kept, ' '))
else
  call('HDEL', KEYS[1], 'left')
end
return { 'forgotten' }
