-- Protect: raise too short remaining TTLs of the values of one page of a tenant's scheduled members.
--
-- KEYS[1]  schedule
-- ARGV[1]  cursor ('0' = begin)
-- ARGV[2]  page size (a hint, as in ZSCAN)
-- ARGV[3]  protect floor in milliseconds (0 = only read)
-- ARGV[4]  tenant prefix: only values whose key begins with it are touched ('' = single-tenant)
--
-- Result   { cursor, seen, raised, absent, shortest }
--          cursor    for the next page; '0' = all pages done
--          seen      members in this page
--          raised    values whose remaining TTL was raised
--          absent    members without a value (already expired, not ours, or refused)
--          shortest  smallest remaining TTL in milliseconds, after raising; -1 = none in this page has one
-- Error    the refusal, if Redis refuses to read or raise every TTL of the page
--
-- Atomic per page. ZSCAN returns every member that stays scheduled during the whole iteration at least once.

local floor_ms, prefix = tonumber(ARGV[3]), ARGV[4]
local raised, absent, shortest = 0, 0, -1
local answered, refusal = 0, nil
local cursor, seen = scan_members(KEYS[1], ARGV[1], tonumber(ARGV[2]), function(member)
  local left, did_raise, err = -2, false, nil
  -- No ledger writes a value under a longer key.
  if #member <= LONGEST_MEMBER and is_own(member, prefix) then left, did_raise, err = raise_ttl(member, floor_ms) end
  if not err then
    answered = answered + 1
  elseif left or in_slot(member) then
    -- Outside the slot a refusal concerns this key alone.
    refusal = refusal or err
  end
  if did_raise then raised = raised + 1 end
  if not left or left == -2 then
    absent = absent + 1
  elseif left >= 0 and (shortest < 0 or left < shortest) then
    shortest = left
  end
end)
if refusal and answered == 0 then return redis.error_reply(refusal) end
return { cursor, seen, raised, absent, shortest }
