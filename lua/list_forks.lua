-- List forks: write down that balances have forked. One that is mutated all the time is scheduled all the time, so this asks for no
-- lease, and what is scheduled stays scheduled.
--
-- KEYS[1]  schedule; only its name counts
-- KEYS[2]  losses (hash: field = member, value = JSON entry)
-- KEYS[3]  events (hash: field = schedule)
-- ARGV[1]  most entries kept
-- ARGV[2…] pairs: member, what is known (text, stored as it is)
--
-- Result   { listed, known, full }: `known` had an entry before, which stays as it is; for `full` there was no room
--
-- Atomic: looking for entries, writing entries, counting events.

local most, time = tonumber(ARGV[1]), redis_time()
local entries = redis.call('HLEN', KEYS[2])
local listed, known, full = 0, 0, 0
for i = 2, #ARGV, 2 do
  if redis.call('HGET', KEYS[2], ARGV[i]) then
    known = known + 1
  elseif entries >= most then
    full = full + 1
  else
    local entry = { confirmed = true, loss = ARGV[i + 1], first_at = time.text, last_at = time.text, count = 1 }
    redis.call('HSET', KEYS[2], ARGV[i], cjson.encode(entry))
    entries, listed = entries + 1, listed + 1
  end
end
count_events(KEYS[3], KEYS[1], listed)
return { listed, known, full }
