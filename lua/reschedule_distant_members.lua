-- Reschedule: make members due that are scheduled further ahead than any lease or delay reaches, as they are after Redis's
-- clock has jumped back.
--
-- KEYS[1]  schedule
-- KEYS[2]  quarantine hash of the tenant
-- ARGV[1]  longest lease or delay, in milliseconds
-- ARGV[2]  page size
--
-- Result   { done, more }
--          done  members that are due now
--          more  1 = there may be more of them
--
-- Atomic per page: finding and moving. A newer mutation is due already and is not found; what a worker still holds under a
-- lease is written a second time, which changes nothing.

local time = redis_time()
local from = string.format('(%.17g', time.now + tonumber(ARGV[1]) / 1000)
local size, page = tonumber(ARGV[2]), {}
local first = redis.call('ZCARD', KEYS[1]) - redis.call('ZCOUNT', KEYS[1], from, '+inf')
local done, cut_short = read_members(KEYS[1], first, size, MEMBER_BYTES, function(member, score)
  page[#page + 1], page[#page + 2] = member, score
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
return { done, (cut_short or done == size) and 1 or 0 }
