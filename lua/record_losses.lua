-- Record losses: move members whose value is gone out of the schedule into a hash of the tenant with what is known about
-- the lost mutation, each only while its score is still our lease. No write removes these entries. An operator does, or a
-- retry that finds nothing lost (see `remove_balance_sync_keys_batch.lua`).
--
-- KEYS[1]  schedule
-- KEYS[2]  losses (hash: field = member, value = JSON entry)
-- KEYS[3]  events (hash: field = schedule): each loss is one, also a further one of the same member
-- ARGV[1]  lock prefix ('' = mode `lease`)
-- ARGV[2]  lock token (mode `lock`): only locks that carry it are deleted
-- ARGV[3]  most entries kept; a new member beyond that stays scheduled and is postponed
-- ARGV[4]  for how long, milliseconds
-- ARGV[5…] groups of four: lease score, member, confirmed ('1' or '0'), what is known (text, stored as it is)
--
-- Result   { recorded, kept, full } as in `quarantine_balance_sync_keys.lua`
--
-- Atomic: comparing scores, removing from the schedule, writing entries, unlocking. `first_at`, `count` and the mark of a
-- later mutation are carried on from a former entry. A confirmed loss is not replaced by an unconfirmed one.

return move_to_hash(5, 4, true, function(i, _, before)
  local entry = { confirmed = ARGV[i + 2] == '1', loss = ARGV[i + 3] }
  if before then
    if type(before.later_at) == 'string' then entry.later_at = before.later_at end
    if before.confirmed == true and type(before.loss) == 'string' and not entry.confirmed then
      entry.confirmed, entry.loss = true, before.loss
    end
  end
  return entry
end)
