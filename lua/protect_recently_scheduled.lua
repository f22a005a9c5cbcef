-- Protect recent: raise too short remaining TTLs of the values of members scheduled since a given time. Runs between two
-- complete sweeps; its cost grows with the number of new mutations, not with the backlog.
--
-- KEYS[1]  schedule
-- ARGV[1]  from: score at which to begin; '-' = only return the time
-- ARGV[2]  last: member of that score after which to begin ('' = with the first one)
-- ARGV[3]  page size
-- ARGV[4]  protect floor in milliseconds
-- ARGV[5]  tenant prefix: only values whose key begins with it are touched ('' = single-tenant)
--
-- Result   { now, more, raised, score, member }
--          now            Redis time, seconds with six decimals
--          more           1 = there may be another page
--          raised         values whose remaining TTL was raised
--          score, member  the last of them, for the next page
--
-- Atomic per page. The next page begins after a member and not at an offset: settling between two pages would move members
-- past the offset.

local now = redis_time().text
local from, last = ARGV[1], ARGV[2]
if from == '-' then return { now, 0, 0, from, last } end
local size, floor_ms, prefix = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]

-- Whether a member comes after `last` where their scores are equal: byte by byte, as Redis orders them.
local function is_after_last(member)
  for i = 1, math.min(#member, #last) do
    local a, b = string.byte(member, i), string.byte(last, i)
    if a ~= b then return a > b end
  end
  return #member > #last
end

-- Binary search for the rank after `last`, which may have left the schedule: ranks below `first` come before the page,
-- those from `limit` on don't.
local first, limit = redis.call('ZCOUNT', KEYS[1], '-inf', '(' .. from), redis.call('ZCOUNT', KEYS[1], '-inf', from)
while first < limit do
  local middle = math.floor((first + limit) / 2)
  if is_after_last(redis.call('ZRANGE', KEYS[1], middle, middle)[1]) then limit = middle else first = middle + 1 end
end

local raised = 0
local seen, cut_short = read_members(KEYS[1], first, size, MEMBER_BYTES, function(member, score)
  from, last = score, member
  if #member <= LONGEST_MEMBER and is_own(member, prefix) then
    -- A refusal must not keep the other members from being protected.
    local _, did_raise = raise_ttl(member, floor_ms)
    if did_raise then raised = raised + 1 end
  end
end)
return { now, (cut_short or seen == size) and 1 or 0, raised, from, last }
