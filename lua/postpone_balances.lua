-- Postpone: put claimed members off that can't be worked at present, each only while its score is still our lease, and keep
-- their values alive until then.
--
-- KEYS[1]  schedule
-- ARGV[1]  lock prefix ('' = mode `lease`)
-- ARGV[2]  lock token (mode `lock`): only locks that carry it are deleted
-- ARGV[3]  for how long, milliseconds
-- ARGV[4]  floor in milliseconds: shorter remaining lives of the values are raised to it
-- ARGV[5]  tenant prefix: only values whose key begins with it are touched ('' = single-tenant)
-- ARGV[6…] triples: lease score, member, 'v' = raise the life of its value, '-' = leave it
--
-- Result   { postponed, kept }
--          postponed  members that come due again after that time
--          kept       members with a newer mutation or a later claim: left as they are
--
-- Atomic: comparing, moving, unlocking, protecting. The new score lies half-way between two microseconds, as leases do: no
-- producer writes it, so a newer mutation is always noticed. Our lock goes unless a later claim holds the member.

local lock_prefix, token, floor_ms, prefix = ARGV[1], ARGV[2], tonumber(ARGV[4]), ARGV[5]
local PAGE = 1000
local postponed, kept = 0, 0
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local micros = tonumber(time[2]) + tonumber(ARGV[3]) * 1000
local later = string.format('%d.%06d5', tonumber(time[1]) + math.floor(micros / 1000000), micros % 1000000)

local function unlock(member)
  if lock_prefix == '' then return end
  local lock = lock_prefix .. member
  if redis.pcall('GET', lock) == token then redis.pcall('DEL', lock) end
end

local function own(member)
  if prefix == '' then return string.sub(member, 1, 7) ~= 'tenant:' end
  return string.sub(member, 1, #prefix) == prefix
end

for first = 6, #ARGV, 3 * PAGE do
  local last = math.min(first + 3 * PAGE - 1, #ARGV)
  local page, moves, ours = {}, {}, {}
  for i = first, last, 3 do page[#page + 1] = ARGV[i + 1] end
  local scores = redis.call('ZMSCORE', KEYS[1], unpack(page))
  for n = 1, #page do
    if scores[n] and tonumber(scores[n]) == tonumber(ARGV[first + 3 * (n - 1)]) then
      moves[#moves + 1] = later
      moves[#moves + 1] = page[n]
      ours[#ours + 1] = n
    else
      kept = kept + 1
      -- A newer mutation is due for everybody; a later claim, perhaps our own, still needs its lock.
      if not scores[n] or tonumber(scores[n]) <= now then unlock(page[n]) end
    end
  end
  if #moves > 0 then redis.call('ZADD', KEYS[1], 'XX', unpack(moves)) end
  postponed = postponed + #ours
  for _, n in ipairs(ours) do
    unlock(page[n])
    if ARGV[first + 3 * (n - 1) + 2] == 'v' and own(page[n]) then
      local left = redis.pcall('PTTL', page[n])
      if type(left) == 'number' and left >= 0 and left < floor_ms then redis.pcall('PEXPIRE', page[n], floor_ms) end
    end
  end
end
return { postponed, kept }
