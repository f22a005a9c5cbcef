-- Reschedule: make members due that are scheduled further ahead than any lease or delay reaches, as they are after Redis's
-- clock has jumped back.
--
-- KEYS[1]  schedule
-- KEYS[2]  quarantine hash of the tenant
-- ARGV[1]  longest lease or delay, in milliseconds
-- ARGV[2]  page size
--
-- Result   number of members that are due now; fewer than the page size = it was the last page
--
-- Atomic per page: finding and moving. A newer mutation is due already and is not found; what a worker still holds under a
-- lease is written a second time, which changes nothing.

local time = redis_time()
local from = string.format('(%.17g', time.now + tonumber(ARGV[1]) / 1000)
local page = redis.call('ZRANGEBYSCORE', KEYS[1], from, '+inf', 'WITHSCORES', 'LIMIT', 0, tonumber(ARGV[2]))
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
return #page / 2
