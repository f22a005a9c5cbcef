-- Settle: remove members from the schedule that are written, or of which nothing is to be written, each only while its
-- score is still our lease.
--
-- KEYS[1]  schedule
-- KEYS[2]  quarantine hash of the tenant: entries of removed members are cleared, a good write mends them
-- KEYS[3]  losses of the tenant: entries stay, whatever is written later
-- ARGV[1]  lock prefix ('' = mode `lease`)
-- ARGV[2]  lock token (mode `lock`): only locks that carry it are deleted
-- ARGV[3]  'written' (Postgres has them) or 'nothing' (there is nothing to write: their rows are deleted, or as new as all
--          that is known)
-- ARGV[4…] pairs: lease score, member
--
-- Result   { now, removed, kept }
--          now      Redis time after the write, seconds with six decimals
--          removed  members whose score was still the lease
--          kept     members with a newer mutation or a later claim: they stay scheduled
--
-- Atomic: comparing the scores, removing, unlocking, clearing. Our lock goes unless a later claim holds the
-- member. Scores are compared as numbers, because the text form of a double differs between Redis versions.
-- A loss is marked when a later mutation of its balance is written: that one was counted from a row which lacked the lost one.
-- It goes only when it was unconfirmed, somebody had it looked at again, and nothing turned out to be lost.

local lock_prefix, token, written = ARGV[1], ARGV[2], ARGV[3] == 'written'
local PAGE = 1000
local KEEP_ALIVE = 86400 -- seconds that a value may live again that was kept without end for its entry
local removed, kept = 0, 0
local quarantined = redis.call('EXISTS', KEYS[2]) == 1
local lost = redis.call('EXISTS', KEYS[3]) == 1
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local shown = string.format('%s.%06d', time[1], time[2])

local function unlock(member)
  if lock_prefix == '' then return end
  local lock = lock_prefix .. member
  if redis.pcall('GET', lock) == token then redis.pcall('DEL', lock) end
end

-- The entries of these members in a hash; none where the key holds something else.
local function entries_of(key, members)
  local found = redis.pcall('HMGET', key, unpack(members))
  if type(found) ~= 'table' or found.err then return {} end
  local entries = {}
  for n = 1, #members do
    if found[n] then
      local ok, entry = pcall(cjson.decode, found[n])
      entries[members[n]] = ok and type(entry) == 'table' and entry or {}
    end
  end
  return entries
end

local function clear_quarantine(members)
  local gone = {}
  for member, entry in pairs(entries_of(KEYS[2], members)) do
    gone[#gone + 1] = member
    if entry.kept_alive == true and redis.pcall('TTL', member) == -1 then redis.pcall('EXPIRE', member, KEEP_ALIVE) end
  end
  if #gone > 0 then redis.pcall('HDEL', KEYS[2], unpack(gone)) end
end

local function look_at_losses(members)
  for member, entry in pairs(entries_of(KEYS[3], members)) do
    if written then
      if type(entry.loss) == 'string' then
        entry.later_at = shown
        redis.pcall('HSET', KEYS[3], member, cjson.encode(entry))
      end
    elseif entry.retry and entry.confirmed == false and not entry.later_at then
      redis.pcall('HDEL', KEYS[3], member)
    end
  end
end

for first = 4, #ARGV, 2 * PAGE do
  local last = math.min(first + 2 * PAGE - 1, #ARGV)
  local page = {}
  for i = first, last, 2 do page[#page + 1] = ARGV[i + 1] end
  local scores = redis.call('ZMSCORE', KEYS[1], unpack(page))
  local ours = {}
  for n = 1, #page do
    if scores[n] and tonumber(scores[n]) == tonumber(ARGV[first + 2 * (n - 1)]) then
      ours[#ours + 1] = page[n]
    else
      kept = kept + 1
      -- A newer mutation is due for everybody; a later claim, perhaps our own, still needs its lock.
      if not scores[n] or tonumber(scores[n]) <= now then unlock(page[n]) end
    end
  end
  if #ours > 0 then
    removed = removed + redis.call('ZREM', KEYS[1], unpack(ours))
    -- Where the key holds something else there is nothing to clear, and what is written must leave the schedule.
    if quarantined then clear_quarantine(ours) end
    if lost then look_at_losses(ours) end
    for n = 1, #ours do unlock(ours[n]) end
  end
end

return { shown, removed, kept }
