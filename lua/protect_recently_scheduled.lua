-- Protect, between two whole sweeps: members scheduled since a moment, so that a value with a short life that came
-- after the sweep is raised as well. Costs as much as there are new mutations, not as much as there is backlog.
--
-- KEYS[1]  schedule
-- ARGV[1]  from: score at which to begin, '-' = nothing to do but tell the time
-- ARGV[2]  last: member of that score behind which to begin ('' = with the first one)
-- ARGV[3]  page size
-- ARGV[4]  protect floor in milliseconds
-- ARGV[5]  tenant prefix: only values whose key begins with it are touched ('' = single-tenant)
--
-- Result   { now, seen, raised, score, member }
--          seen           members in this page; fewer than the page size = it was the last one
--          score, member  the last of them, for the next page
--
-- Atomic per page. Pages go on behind a member and not at a distance from the beginning: what is settled between two
-- pages would move others past the distance.

local time = redis.call('TIME')
local now = string.format('%s.%06d', time[1], time[2])
local from, last = ARGV[1], ARGV[2]
if from == '-' then return { now, 0, 0, from, last } end
local size, floor_ms, prefix = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]

-- Whether a member comes behind `last` where their scores are equal: byte by byte, as Redis orders them.
local function behind(member)
  for i = 1, math.min(#member, #last) do
    local a, b = string.byte(member, i), string.byte(last, i)
    if a ~= b then return a > b end
  end
  return #member > #last
end

-- Found by halving, because `last` itself may have gone: all ranks below `first` come before the page, none from `limit` on.
local first, limit = redis.call('ZCOUNT', KEYS[1], '-inf', '(' .. from), redis.call('ZCOUNT', KEYS[1], '-inf', from)
while first < limit do
  local middle = math.floor((first + limit) / 2)
  if behind(redis.call('ZRANGE', KEYS[1], middle, middle)[1]) then limit = middle else first = middle + 1 end
end
local page = redis.call('ZRANGE', KEYS[1], first, first + size - 1, 'WITHSCORES')

local raised = 0
for i = 1, #page, 2 do
  local member = page[i]
  local own
  if prefix == '' then
    own = string.sub(member, 1, 7) ~= 'tenant:'
  else
    own = string.sub(member, 1, #prefix) == prefix
  end
  if own then
    local left = redis.pcall('PTTL', member)
    if type(left) == 'number' and left >= 0 and left < floor_ms then
      -- One that Redis doesn't let us change must not end the look.
      if type(redis.pcall('PEXPIRE', member, floor_ms)) == 'number' then raised = raised + 1 end
    end
  end
end
return { now, #page / 2, raised, page[#page] or from, page[#page - 1] or last }
