-- Probe: which of these schedules have a due member? One call for many idle tenants.
--
-- KEYS[…]  schedules
--
-- Result   { position, position, ... }: positions (from 1) in KEYS of the schedules with a due member. A key of
--          the wrong type counts as due: the claim then says what is wrong with it.
--
-- Read-only.

local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local due = {}
for i = 1, #KEYS do
  local head = redis.pcall('ZRANGE', KEYS[i], 0, 0, 'WITHSCORES')
  if head.err or (head[2] and tonumber(head[2]) <= now) then due[#due + 1] = i end
end
return due
