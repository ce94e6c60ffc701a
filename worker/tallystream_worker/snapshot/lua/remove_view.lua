-- remove_view: removes an open view, its old values, and the copies that scripts have made for it.
local call = redis.call

-- `cut` is the key of the view, which must exist.
local function remove_view(cut)
  local copies = cut .. ':copy:' .. call('GET', cut) .. ':'
  for _, key in ipairs(call('SMEMBERS', cut .. ':copied')) do
    call('UNLINK', copies .. key)
  end
  call('DEL', cut, cut .. ':before', cut .. ':copied')
end

return remove_view
