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
-- ARGV[4…] pairs: lease score, member
--
-- Result   { now, removed, kept }
--          now      Redis time after the write, seconds with six decimals
--          removed  members whose score was still the lease
--          kept     members with a newer mutation or a later claim: still scheduled
--
-- Atomic: comparing scores, removing, unlocking, updating entries. Our lock is deleted unless a later claim holds the
-- member. When a later mutation of a lost balance is written, its loss is marked: that mutation was computed from a row
-- without the lost one. A loss is removed only if it was unconfirmed, an operator retried it, and nothing proved lost.

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

local kept = for_leased(KEYS[1], 4, 2, lock_prefix, token, function(members)
  removed = removed + redis.call('ZREM', KEYS[1], unpack(members))
  if has_quarantine then clear_quarantine(members) end
  if has_losses then update_losses(members) end
  for _, member in ipairs(members) do unlock(lock_prefix, token, member) end
end)
return { time.text, removed, kept }
