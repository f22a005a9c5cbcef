-- Retry or drop quarantined members by hand.
--
-- KEYS[1]  schedule
-- KEYS[2]  quarantine hash
-- ARGV[1]  'retry' or 'drop'
-- ARGV[2…] members
--
-- Result   { done, absent }
--
-- Retry schedules the member as due now unless it is scheduled already; its entry stays until a write settles
-- it, so that its kept value is there if the value in Redis has expired. Drop forgets the entry.

local time = redis.call('TIME')
local now = string.format('%s.%06d', time[1], time[2])
local done, absent = 0, 0
for i = 2, #ARGV do
  if redis.call('HEXISTS', KEYS[2], ARGV[i]) == 0 then
    absent = absent + 1
  else
    if ARGV[1] == 'drop' then
      redis.call('HDEL', KEYS[2], ARGV[i])
    else
      redis.call('ZADD', KEYS[1], 'NX', now, ARGV[i])
    end
    done = done + 1
  end
end
return { done, absent }
