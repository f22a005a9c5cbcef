-- Settle: remove members from the schedule that are written, or that need no write, each only while its score is still our
-- lease.
--
-- KEYS[1]  schedule
-- KEYS[2]  quarantine hash of the tenant: entries of removed members are deleted
-- KEYS[3]  losses of the tenant: entries stay, whatever is written later
-- ARGV[1]  lock prefix ('' = mode `lease`)
-- ARGV[2]  lock token (mode `lock`): only locks that carry it are deleted
-- ARGV[3]  'written' (Postgres has them) or 'nothing' (no write is needed: their rows are deleted, or as new as the newest
--          known mutation)
-- ARGV[4]  number of whole claims
-- ARGV[5…] groups of four, one per whole claim: lease score, number of members that the claim gave it, the first and the last of
--          them in the order of their bytes. All of them are to be removed. Not in mode `lock`
-- ARGV[…]  pairs: lease score, member
--
-- Result   { now, removed, kept, lease, ... }
--          now      Redis time after the write, seconds with six decimals
--          removed  members whose score was still the lease
--          kept     members named in pairs with a newer mutation or a later claim: still scheduled
--          lease    of a whole claim that is no longer whole: of its members none was removed, and they must be named
--
-- Atomic: comparing scores, removing, unlocking, updating entries. Our lock is deleted unless a later claim holds the
-- member. When a later mutation of a lost balance is written, its loss is marked: that mutation was computed from a row
-- without the lost one. A loss is removed only if it was unconfirmed, an operator retried it, and nothing proved lost.
-- A claim gives a lease score that no other member has. So those that have it now, if they are as many and begin and end with the
-- same members, are those that were claimed, each as it was claimed.

local lock_prefix, token, written = ARGV[1], ARGV[2], ARGV[3] == 'written'
local has_quarantine = redis.call('EXISTS', KEYS[2]) == 1
local has_losses = redis.call('EXISTS', KEYS[3]) == 1
local time = redis_time()
local removed = 0

-- The entries of these members in a hash. None if the key is of another type: written members must leave the schedule
-- all the same.
local function entries_of(key, members)
  local raw = redis.pcall('HMGET', key, unpack(members))
  if err_of(raw) then return {} end
  local entries = {}
  for n, member in ipairs(members) do
    if raw[n] then entries[member] = decode(raw[n]) or {} end
  end
  return entries
end

local function clear_quarantine(members)
  local cleared = {}
  for member, entry in pairs(entries_of(KEYS[2], members)) do
    cleared[#cleared + 1] = member
    stop_keeping_alive(entry, member)
  end
  if #cleared > 0 then redis.pcall('HDEL', KEYS[2], unpack(cleared)) end
end

local function update_losses(members)
  for member, entry in pairs(entries_of(KEYS[3], members)) do
    if written then
      if type(entry.loss) == 'string' then
        entry.later_at = time.text
        redis.pcall('HSET', KEYS[3], member, cjson.encode(entry))
      end
    elseif entry.retry and entry.confirmed == false and not entry.later_at then
      redis.pcall('HDEL', KEYS[3], member)
    end
  end
end

-- The members with this score, at most PAGE of them.
local function members_with(score, offset, most)
  return redis.call('ZRANGEBYSCORE', KEYS[1], score, score, 'LIMIT', offset, math.min(most, PAGE))
end

-- Removes the members of a whole claim. Returns whether it was whole.
local function remove_whole(lease, number, first, last)
  if redis.call('ZCOUNT', KEYS[1], lease, lease) ~= number then return false end
  if members_with(lease, 0, 1)[1] ~= first or members_with(lease, number - 1, 1)[1] ~= last then return false end
  if has_quarantine or has_losses then
    for offset = 0, number - 1, PAGE do
      local members = members_with(lease, offset, number - offset)
      if has_quarantine then clear_quarantine(members) end
      if has_losses then update_losses(members) end
    end
  end
  removed = removed + redis.call('ZREMRANGEBYSCORE', KEYS[1], lease, lease)
  return true
end

local pairs_from, changed = 5 + 4 * tonumber(ARGV[4]), {}
for i = 5, pairs_from - 1, 4 do
  if not remove_whole(ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2], ARGV[i + 3]) then changed[#changed + 1] = ARGV[i] end
end

local kept = for_leased(KEYS[1], pairs_from, 2, lock_prefix, token, function(members)
  removed = removed + redis.call('ZREM', KEYS[1], unpack(members))
  if has_quarantine then clear_quarantine(members) end
  if has_losses then update_losses(members) end
  for _, member in ipairs(members) do unlock(lock_prefix, token, member) end
end)
return { time.text, removed, kept, unpack(changed) }
