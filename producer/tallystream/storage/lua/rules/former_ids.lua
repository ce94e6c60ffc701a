-- former_ids: finds copies of events whose IDs were stored before `ids` or `seen` of their metric was changed.
--
-- A form of IDs is "<length of a period>/<exact or bloom>", such as "1d/exact". After a change, the IDs in other forms
-- are kept as long as before, and an event whose ID is among them is a copy, by the length of that form. Unlike copies
-- in the same form, the first to arrive counts, not the earliest.
local bloom = require('tallystream.storage.lua.rules.bloom')
local records = require('tallystream.storage.lua.rules.records')

local call = redis.call
local WINDOWS = { ['60s'] = 60000, ['1h'] = 3600000, ['1d'] = 86400000, ['31d'] = 2678400000 }

-- Returns whether the hash or the Bloom filter at `key` has an event with the ID `field` that is at most `apart` from
-- the millisecond `at`.
local function has(key, field, at, apart, is_bloom)
  if is_bloom then
    return call('EXISTS', key) == 1 and bloom.contains(key, bloom.positions(field))
  end
  local record = call('HGET', key, field)
  if not record then
    return false
  end
  local first, last = records.parse_id(record)
  return at >= first - apart and at <= last + apart
end

-- Returns the other forms in which IDs of a rule are stored, as { name, length, whether it is a Bloom filter, bound }.
local function forms_of(self, rule)
  local forms = {}
  for window, kind, bound in string.gmatch(self.former[rule.metric] or '', '(%w+)/(%l+)@(%d+)') do
    local is_bloom = kind == 'bloom'
    if not (WINDOWS[window] == rule.apart and is_bloom == (rule.bloom == 1)) then
      forms[#forms + 1] = { window, WINDOWS[window], is_bloom, tonumber(bound) }
    end
  end
  return forms
end

-- Returns the keys of a form in which a copy of an event with the millisecond `at` may be.
local function keys_of(seen, form, at)
  local window, apart, is_bloom = unpack(form)
  local prefix, own, keys = string.match(seen[2], '^(.*:)'), math.floor(at / apart), {}
  for nth = own - 1, own + 1 do
    keys[#keys + 1] = string.format('%s%s-%.0f%s', prefix, window, nth, is_bloom and 'b' or '')
  end
  return keys
end

-- Returns a function that returns whether an event of an element of the batch's `seen` is such a copy; `nil` if no
-- event can be one.
local function finder(self, rule, seen)
  local forms = forms_of(self, rule)
  return forms[1]
    and function(field, at)
      for _, form in ipairs(forms) do
        local _, apart, is_bloom, bound = unpack(form)
        for _, key in ipairs(at < bound and keys_of(seen, form, at) or {}) do
          if has(key, field, at, apart, is_bloom) then
            return true
          end
        end
      end
      return false
    end
end

return { finder = finder, forms_of = forms_of, keys_of = keys_of, WINDOWS = WINDOWS }
