-- Quarantine: move members that can't be synced out of the schedule into a hash of the tenant, each with its reason and
-- only while its score is still our lease.
--
-- KEYS[1]  schedule
-- KEYS[2]  quarantine hash (field = member, value = JSON entry)
-- KEYS[3]  events (hash: field = schedule): a member that is new to the quarantine is one
-- ARGV[1]  lock prefix ('' = mode `lease`)
-- ARGV[2]  lock token (mode `lock`): only locks that carry it are deleted
-- ARGV[3]  most entries kept; a new member beyond that stays scheduled and is postponed
-- ARGV[4]  for how long, milliseconds
-- ARGV[5]  tenant prefix: only values whose key begins with it are touched ('' = single-tenant)
-- ARGV[6…] groups of six: lease score, member, reason, detail, value, flag
--          flag: 'v' = the whole value, 't' = its beginning, '-' = no value was found (the argument is ignored)
--
-- Result   { quarantined, kept, full }
--          quarantined  members moved into the hash, or whose entry was renewed
--          kept         members with a newer mutation or a later claim: unchanged
--          full         members postponed because the hash is full
--
-- Atomic: comparing scores, removing from the schedule, writing entries, unlocking. `first_at` and `count` of a member that
-- was quarantined before are carried on. Our lock is deleted unless a later claim holds the member. A retry reads the
-- value's key if the entry doesn't hold the whole value, so the TTL of that key is removed until the entry is.

local prefix = ARGV[5]

return move_to_hash(6, 6, false, function(i, member, before)
  local flag = ARGV[i + 5]
  local entry = { reason = ARGV[i + 2], detail = ARGV[i + 3], truncated = flag == 't' }
  if flag ~= '-' then entry.value = ARGV[i + 4] end
  if before then
    entry.kept_alive = before.kept_alive == true or nil
    -- The value may have expired since: keep the copy.
    if entry.value == nil and type(before.value) == 'string' then
      entry.value, entry.truncated = before.value, before.truncated == true
    end
  end
  if flag ~= 'v' and is_own(member, prefix) and redis.pcall('PERSIST', member) == 1 then entry.kept_alive = true end
  return entry
end)
