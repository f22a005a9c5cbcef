-- Put off: claimed members that can't be worked yet, each only while its score is still our lease.
--
-- KEYS[1]  schedule
-- ARGV[1]  lock prefix ('' = mode `lease`)
-- ARGV[2]  lock token (mode `lock`): only locks that carry it are deleted
-- ARGV[3]  for how long, milliseconds
-- ARGV[4…] pairs: lease score, member
--
-- Result   { put off, kept }
--          put off  members that come due again after that time
--          kept     members with a newer mutation or a later claim: left as they are
--
-- Atomic: comparing, moving, unlocking. Our lock goes unless a later claim holds the member. The new score lies half-way
-- between two microseconds, as leases do: no producer writes it, so a newer mutation is always noticed.

local lock_prefix, token = ARGV[1], ARGV[2]
local PAGE = 1000
local put_off, kept = 0, 0
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local micros = tonumber(time[2]) + tonumber(ARGV[3]) * 1000
local later = string.format('%d.%06d5', tonumber(time[1]) + math.floor(micros / 1000000), micros % 1000000)

local function unlock(member)
  if lock_prefix == '' then return end
  local lock = lock_prefix .. member
  if redis.pcall('GET', lock) == token then redis.pcall('DEL', lock) end
end

for first = 4, #ARGV, 2 * PAGE do
  local last = math.min(first + 2 * PAGE - 1, #ARGV)
  local page, moves = {}, {}
  for i = first, last, 2 do page[#page + 1] = ARGV[i + 1] end
  local scores = redis.call('ZMSCORE', KEYS[1], unpack(page))
  for n = 1, #page do
    if scores[n] and tonumber(scores[n]) == tonumber(ARGV[first + 2 * (n - 1)]) then
      moves[#moves + 1] = later
      moves[#moves + 1] = page[n]
      put_off = put_off + 1
      unlock(page[n])
    else
      kept = kept + 1
      -- A newer mutation is due for everybody; a later claim, perhaps our own, still needs its lock.
      if not scores[n] or tonumber(scores[n]) <= now then unlock(page[n]) end
    end
  end
  if #moves > 0 then redis.call('ZADD', KEYS[1], 'XX', unpack(moves)) end
end
return { put_off, kept }
