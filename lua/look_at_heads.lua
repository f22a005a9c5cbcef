-- Look at heads: what has waited longest in each of these schedules? One call for many for which a worker stands by.
--
-- KEYS[…]  schedules
-- ARGV[…]  for each schedule the member that was at its head at the last look ('' = none was due)
--
-- Result   { { member, score, waits } | false, … }: one for each schedule; false = nothing is due, or the key holds something
--          else, which whoever works the schedule reports
--          member, score  its head, with the time since which it is due
--          waits          1 = the member of the last look is due as well: nobody has claimed it since
--
-- Read-only.

local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local heads = {}
for i = 1, #KEYS do
  local head = redis.pcall('ZRANGE', KEYS[i], 0, 0, 'WITHSCORES')
  if not head.err and head[2] and tonumber(head[2]) <= now then
    local score = ARGV[i] ~= '' and redis.call('ZSCORE', KEYS[i], ARGV[i])
    head[3] = score and tonumber(score) <= now and 1 or 0
    heads[i] = head
  else
    heads[i] = false
  end
end
return heads
