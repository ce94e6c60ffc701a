#!lua
-- losses: moves the events of entries that vanished before they were counted to the ledger's `trimmed`.
--
-- KEYS[1] stream   KEYS[2] the generation's ledger (hash)   KEYS[3] the log's ledger (hash; the first generation's own)
-- ARGV[1] group
--
-- Returns {"waiting"}                  something is pending or unread: what waits hides what is missing
--         {"settled", entries, events} so many had vanished: now they are in the books (mostly 0, 0)
--         {"open", entries, events}    events are missing and it is not proved that entries vanished: a fault, left as it is
--
-- Proof is taken from figures that only the server and the other scripts move: the stream has had more entries
-- than something became of, and at least as many were removed by somebody else since the books balanced last.
-- Both must hold: an entry that was acknowledged and not counted is missing, but has not vanished.
--
-- Invariant: `trimmed` grows only by what is missing at rest, so it can make the books balance and never tip them.
local stream, ledger, log = KEYS[1], KEYS[2], KEYS[3]
local call = redis.call

local function fields(flat)
  local named = {}
  for i = 1, #flat, 2 do
    named[flat[i]] = flat[i + 1]
  end
  return named
end

local info, group = fields(call('XINFO', 'STREAM', stream)), nil
for _, each in ipairs(call('XINFO', 'GROUPS', stream)) do
  local found = fields(each)
  if found.name == ARGV[1] then
    group = found
  end
end
if not group then
  error({ err = 'NOGROUP ' .. stream .. ' has no consumer group ' .. ARGV[1] })
end
local delivered, generated = group['last-delivered-id'], info['last-generated-id']
if group.pending > 0 or #call('XRANGE', stream, '(' .. delivered, '+', 'COUNT', 1) > 0 then
  return { 'waiting' }
end

local books, outcomes = fields(call('HGETALL', ledger)), 0
for _, name in ipairs({ 'counted', 'duplicate', 'late', 'dead', 'trimmed', 'retracted' }) do
  outcomes = outcomes + tonumber(books[name] or 0)
end
for name, events in pairs(books) do
  if string.match(name, '^rejected:[^@]*$') then
    outcomes = outcomes + tonumber(events)
  end
end
local function log_figure(name)
  return tonumber(call('HGET', log, 'entries:' .. name) or 0)
end
local appended = tonumber(books.appended or 0)
if ledger ~= log then -- a later generation: what the gate let in is the log's to say; see tallystream.reading.ledger
  local gated, plain = unpack(call('HMGET', log, 'appended', 'plain'))
  appended = appended + tonumber(gated or 0) - tonumber(plain or 0)
end
local missing = appended - outcomes
local added = info['entries-added']
local settled, plain = tonumber(books['entries:settled'] or 0), tonumber(books['entries:plain'] or 0)
local unsettled = added - settled
local removed = added - info.length - log_figure('retired')
local fresh = removed - tonumber(books['entries:removed'] or 0)

local function move(name, by)
  if by ~= 0 then
    call('HINCRBY', ledger, name, string.format('%.0f', by))
  end
end

-- Nothing lies between what was delivered last and what was appended last: without this the server's lag never
-- falls to 0 where the last entries vanished unread. Forward over nothing, so the gate is as tight as before. Who may
-- not set it (an ACL of before) moves the ledger all the same; the lag then stays wrong: until the next read, or for
-- good (Redis 7.0).
if delivered ~= generated or group.lag ~= 0 then
  redis.pcall('XGROUP', 'SETID', stream, ARGV[1], generated, 'ENTRIESREAD', added)
end
if missing < 0 or (missing > 0 and (unsettled <= 0 or fresh < unsettled)) then
  return { 'open', unsettled, missing }
end
-- A plain entry's event is in `appended` only once it is counted: those that vanished are what the gates did not let in.
local unseen = 0
if unsettled > 0 and fresh >= unsettled then
  unseen = math.max(0, math.min(unsettled, added - log_figure('gated') - plain))
end
move('appended', unseen)
move('plain', unseen)
move('trimmed', missing + unseen)
move('entries:settled', unsettled)
move('entries:plain', added - log_figure('gated') - plain)
move('entries:removed', fresh)
return { 'settled', (missing + unseen > 0) and unsettled or 0, missing + unseen }
