-- Settle: remove written members from the schedule, each only while its score is still our lease.
--
-- KEYS[1]  schedule
-- KEYS[2]  quarantine hash of the tenant: entries of removed members are cleared, a good write mends them
-- ARGV[1]  lock prefix ('' = mode `lease`)
-- ARGV[2]  lock token (mode `lock`): only locks that carry it are deleted
-- ARGV[3…] pairs: lease score, member
--
-- Result   { now, removed, kept }
--          now      Redis time after the write, seconds with six decimals
--          removed  members whose score was still the lease
--          kept     members with a newer mutation or a later claim: they stay scheduled
--
-- Atomic: comparing the scores, removing, unlocking, clearing. Our lock goes unless a later claim holds the
-- member. Scores are compared as numbers, because the text form of a double differs between Redis versions.

local lock_prefix, token = ARGV[1], ARGV[2]
local PAGE = 1000
local removed, kept = 0, 0
local quarantined = redis.call('EXISTS', KEYS[2]) == 1
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000

local function unlock(member)
  if lock_prefix == '' then return end
  local lock = lock_prefix .. member
  if redis.pcall('GET', lock) == token then redis.pcall('DEL', lock) end
end

for first = 3, #ARGV, 2 * PAGE do
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
    if quarantined then redis.pcall('HDEL', KEYS[2], unpack(ours)) end
    for n = 1, #ours do unlock(ours[n]) end
  end
end

return { string.format('%s.%06d', time[1], time[2]), removed, kept }
