-- Postpone: make claimed members that can't be synced at present due again later, each only while its score is still our
-- lease, and keep their values alive until then.
--
-- KEYS[1]  schedule
-- ARGV[1]  lock prefix ('' = mode `lease`)
-- ARGV[2]  lock token (mode `lock`): only locks that carry it are deleted
-- ARGV[3]  delay, milliseconds
-- ARGV[4]  floor in milliseconds: shorter remaining TTLs of the values are raised to it
-- ARGV[5]  tenant prefix: only values whose key begins with it are touched ('' = single-tenant)
-- ARGV[6…] groups of three: lease score, member, 'v' = raise the TTL of its value, '-' = don't
--
-- Result   { postponed, kept, due }
--          postponed  members that are due again after the delay
--          kept       members with a newer mutation or a later claim: unchanged
--          due        the new score of every postponed member
--
-- Atomic: comparing scores, moving, unlocking, protecting. Our lock is deleted unless a later claim holds the member.

local lock_prefix, token, floor_ms, prefix = ARGV[1], ARGV[2], tonumber(ARGV[4]), ARGV[5]
local later = unused_score(KEYS[1], redis_time(), tonumber(ARGV[3]))
local postponed = 0

local kept = for_leased(KEYS[1], 6, 3, lock_prefix, token, function(members, positions)
  local moves = {}
  for _, member in ipairs(members) do
    moves[#moves + 1] = later
    moves[#moves + 1] = member
  end
  redis.call('ZADD', KEYS[1], 'XX', unpack(moves))
  postponed = postponed + #members
  for n, member in ipairs(members) do
    unlock(lock_prefix, token, member)
    if ARGV[positions[n] + 2] == 'v' and is_own(member, prefix) then raise_ttl(member, floor_ms) end
  end
end)
return { postponed, kept, later }
