-- Heads: the member that has been due longest in each of many schedules, for a standby worker.
--
-- KEYS[…]  schedules
-- ARGV[…]  for each schedule the member at its head at the previous call ('' = none was due)
--
-- Result   { { member, score, unclaimed } | false, … }: one per schedule; false = nothing is due, or the key is of another
--          type, which the worker that syncs the schedule reports
--          member, score  the head, and the time since which it is due; one that is too long is named as in quarantine
--          unclaimed      1 = the member of the previous call is still due, so no worker has claimed it since; 0 = it is not
--
-- Atomic: all heads of one moment. Read-only.

local now = redis_time().now
local heads = {}
for i = 1, #KEYS do
  local head = redis.pcall('ZRANGE', KEYS[i], 0, 0, 'WITHSCORES')
  if not err_of(head) and head[2] and tonumber(head[2]) <= now then
    if #head[1] > LONGEST_MEMBER then head[1] = shortened(head[1]) end
    local score = ARGV[i] == head[1] and head[2] or ARGV[i] ~= '' and redis.call('ZSCORE', KEYS[i], ARGV[i])
    head[3] = score and tonumber(score) <= now and 1 or 0
    heads[i] = head
  else
    heads[i] = false
  end
end
return heads
