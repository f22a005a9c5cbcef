-- Release: give claimed members back at once, each only while its score is still our lease.
--
-- KEYS[1]  schedule
-- ARGV[1]  lock prefix ('' = mode `lease`)
-- ARGV[2]  lock token (mode `lock`): only locks that carry it are deleted
-- ARGV[3]  protect floor in milliseconds: shorter remaining lives of the values are raised to it (0 = off)
-- ARGV[4]  tenant prefix: only values whose key begins with it are touched ('' = single-tenant)
-- ARGV[5…] triples: lease score, member, former score
--
-- Result   { released, kept }
--          released  members put back to their former score: due again for every worker
--          kept      members with a newer mutation or a later claim: left as they are
--
-- Atomic: comparing, restoring, unlocking, protecting. Our lock goes unless a later claim holds the member. A lock or value
-- that Redis doesn't let us change must not keep members from being given back.

local lock_prefix, token, floor_ms, prefix = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local PAGE = 1000
local released, kept = 0, 0
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000

local function unlock(member)
  if lock_prefix == '' then return end
  local lock = lock_prefix .. member
  if redis.pcall('GET', lock) == token then redis.pcall('DEL', lock) end
end

local function own(member)
  if prefix == '' then return string.sub(member, 1, 7) ~= 'tenant:' end
  return string.sub(member, 1, #prefix) == prefix
end

for first = 5, #ARGV, 3 * PAGE do
  local last = math.min(first + 3 * PAGE - 1, #ARGV)
  local page = {}
  for i = first, last, 3 do page[#page + 1] = ARGV[i + 1] end
  local scores = redis.call('ZMSCORE', KEYS[1], unpack(page))
  local back = {}
  for n = 1, #page do
    local i = first + 3 * (n - 1)
    if scores[n] and tonumber(scores[n]) == tonumber(ARGV[i]) then
      back[#back + 1] = ARGV[i + 2]
      back[#back + 1] = page[n]
      released = released + 1
      unlock(page[n])
    else
      kept = kept + 1
      -- A newer mutation is due for everybody; a later claim, perhaps our own, still needs its lock.
      if not scores[n] or tonumber(scores[n]) <= now then unlock(page[n]) end
    end
    -- Whoever writes this member next, its value must live until then.
    if floor_ms > 0 and own(page[n]) then
      local left = redis.pcall('PTTL', page[n])
      if type(left) == 'number' and left >= 0 and left < floor_ms then redis.pcall('PEXPIRE', page[n], floor_ms) end
    end
  end
  if #back > 0 then redis.call('ZADD', KEYS[1], 'XX', unpack(back)) end
end
return { released, kept }
