-- Release: give claimed members back at once, each only while its score is still our lease.
--
-- KEYS[1]  schedule
-- ARGV[1]  lock prefix ('' = mode `lease`)
-- ARGV[2]  lock token (mode `lock`): only locks that carry it are deleted
-- ARGV[3]  protect floor in milliseconds: shorter remaining TTLs of the values are raised to it (0 = off)
-- ARGV[4]  tenant prefix: only values whose key begins with it are touched ('' = single-tenant)
-- ARGV[5…] groups of three: lease score, member, former score
--
-- Result   { released, kept }
--          released  members with their former score again: due for every worker
--          kept      members with a newer mutation or a later claim: unchanged
--
-- Atomic: comparing scores, restoring them, unlocking, protecting. Our lock is deleted unless a later claim holds the
-- member. If Redis refuses to change a lock or a TTL, the member is released all the same.

local lock_prefix, token, floor_ms, prefix = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local released = 0

local kept = for_leased(KEYS[1], 5, 3, lock_prefix, token, function(members, positions)
  local restored = {}
  for n, member in ipairs(members) do
    restored[#restored + 1] = ARGV[positions[n] + 2]
    restored[#restored + 1] = member
    unlock(lock_prefix, token, member)
  end
  redis.call('ZADD', KEYS[1], 'XX', unpack(restored))
  released = released + #members
end)

-- Also of members that are not ours any more: their values must not expire before another worker writes them.
if floor_ms > 0 then
  for i = 6, #ARGV, 3 do
    if is_own(ARGV[i], prefix) then raise_ttl(ARGV[i], floor_ms) end
  end
end
return { released, kept }
