-- Reschedule: make members due that are scheduled further ahead than a lease or delay explains, as they are after Redis's clock
-- has jumped back: further than the longest of them, or with the score of a mutation, which is never ahead.
--
-- KEYS[1]  schedule
-- KEYS[2]  quarantine hash of the tenant
-- ARGV[1]  longest lease or delay, in milliseconds
-- ARGV[2]  page size
-- ARGV[3]  how many of those that are ahead earlier calls have left as they are
-- ARGV[4]  '1' = make them due; '0' = only count them
--
-- Result   { found, seen, more }
--          found  members of this page that are further ahead; with '1' they are due now
--          seen   members of this page that stay where they are
--          more   1 = there may be more of them
--
-- Atomic per page: finding and moving. A newer mutation is due already and is not found; what a worker still holds under a
-- lease is written a second time, which changes nothing. Only with '1' does it write.

local time = redis_time()
local furthest, size = time.now + tonumber(ARGV[1]) / 1000, tonumber(ARGV[2])
local moves, page, found = ARGV[4] == '1', {}, 0
local ahead = redis.call('ZCOUNT', KEYS[1], unexplained_from(time), '+inf')
local first = redis.call('ZCARD', KEYS[1]) - ahead + tonumber(ARGV[3])
local read, cut_short = read_members(KEYS[1], first, size, MEMBER_BYTES, function(member, score)
  if tonumber(score) <= furthest and is_lease(tonumber(score)) then return end
  found = found + 1
  if moves then page[#page + 1], page[#page + 2] = member, score end
end)
for i = 1, #page, 2 do
  -- The copy of a retried member's value is used only while the entry knows the member's score.
  local kept = redis.pcall('HGET', KEYS[2], page[i])
  local entry = type(kept) == 'string' and decode(kept)
  local retry = entry and entry.retry
  if type(retry) == 'table' then
    local former = tonumber(page[i + 1])
    if former == tonumber(retry[1]) or former == tonumber(retry[2]) then
      entry.retry = { time.text, time.text }
      redis.pcall('HSET', KEYS[2], page[i], cjson.encode(entry))
    end
  end
  redis.call('ZADD', KEYS[1], 'XX', time.text, page[i])
end
return { found, moves and read - found or read, (cut_short or read == size) and 1 or 0 }
