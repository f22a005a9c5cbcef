-- Protect: one page of a tenant's scheduled members; lives that are too short are raised to the floor.
--
-- KEYS[1]  schedule
-- ARGV[1]  cursor ('0' = begin)
-- ARGV[2]  page size (a hint, as in ZSCAN)
-- ARGV[3]  protect floor in milliseconds (0 = only look)
-- ARGV[4]  tenant prefix: only values whose key begins with it are touched ('' = single-tenant)
--
-- Result   { cursor, seen, raised, absent, shortest }
--          cursor    for the next page; '0' = all pages done
--          seen      members in this page
--          raised    values whose remaining life was raised
--          absent    members without a value (expired before anybody looked, or not ours)
--          shortest  smallest remaining life in milliseconds, after raising; -1 = none in this page has one
-- Error    what Redis answered, when it refuses to let us look at, or raise, any of them
--
-- Atomic per page. ZSCAN returns every member that stays scheduled during the whole iteration at least once.

local floor_ms, prefix = tonumber(ARGV[3]), ARGV[4]
local page = redis.call('ZSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local seen, raised, absent, shortest = 0, 0, 0, -1
local answered, refusal = 0, nil
for i = 1, #page[2], 2 do
  local member = page[2][i]
  local own
  if prefix == '' then
    own = string.sub(member, 1, 7) ~= 'tenant:'
  else
    own = string.sub(member, 1, #prefix) == prefix
  end
  seen = seen + 1
  -- One that Redis doesn't let us look at or change must not end the sweep.
  local left = own and redis.pcall('PTTL', member) or -2
  if type(left) ~= 'number' then
    if string.match(member, '{([^}]*)}') == 'transactions' then refusal = refusal or left.err end
    left = -2
  else
    answered = answered + 1
  end
  if left == -2 then
    absent = absent + 1
  elseif left >= 0 then
    if left < floor_ms then
      local done = redis.pcall('PEXPIRE', member, floor_ms)
      if type(done) == 'number' then
        left = floor_ms
        raised = raised + 1
      else
        answered, refusal = answered - 1, refusal or done.err
      end
    end
    if shortest < 0 or left < shortest then shortest = left end
  end
end
if refusal and answered == 0 then return redis.error_reply(refusal) end
return { page[1], seen, raised, absent, shortest }
