-- Adopt: move one page of a legacy schedule (ledger before v3.6.2) into the current schedule.
--
-- KEYS[1]  legacy schedule: scores in seconds, or (v3.6.0) in microseconds, around 1e15
-- KEYS[2]  schedule
-- ARGV[1]  page size
--
-- Result   { adopted, left }: fewer than the page size are adopted when they are very long
--
-- Atomic: reading, adding and removing. An adopted score overwrites the score in the schedule, as a mutation would: if the
-- member is being flushed right now, the legacy entry may be the newer mutation, and overwriting the lease keeps it
-- scheduled. Scores are made due and rounded to whole microseconds, so that none can equal a lease.

local page = {}
read_members(KEYS[1], 0, tonumber(ARGV[1]), MEMBER_BYTES, function(member, score)
  page[#page + 1], page[#page + 2] = member, score
end)
if #page == 0 then return { 0, 0 } end
local now = redis_time().now
for i = 1, #page, 2 do
  local score = tonumber(page[i + 1])
  if score > 100000000000 then score = score / 1000000 end
  if not (score <= now) then score = now end
  redis.call('ZADD', KEYS[2], string.format('%.6f', score), page[i])
  redis.call('ZREM', KEYS[1], page[i])
end
return { #page / 2, redis.call('ZCARD', KEYS[1]) }
