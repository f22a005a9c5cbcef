-- Probe: which of these schedules have a due member? One call for many idle tenants.
--
-- KEYS[…]  schedules
-- ARGV[1]  how long a member must have been due to count, in seconds (0 = due is enough)
--
-- Result   { position, position, ... }: positions (from 1) in KEYS of the schedules with such a member. A key of
--          the wrong type counts as one: the claim then says what is wrong with it.
--
-- Read-only.

local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local latest = now - tonumber(ARGV[1])
local due = {}
for i = 1, #KEYS do
  local head = redis.pcall('ZRANGE', KEYS[i], 0, 0, 'WITHSCORES')
  if head.err or (head[2] and tonumber(head[2]) <= latest) then due[#due + 1] = i end
end
return due
