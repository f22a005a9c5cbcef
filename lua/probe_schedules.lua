-- Probe: which of these schedules have a due member? One call for many idle tenants.
--
-- KEYS[…]  schedules
-- ARGV[1]  for how long a member must have been due, in seconds (0 = due is enough)
--
-- Result   { position, position, ... }: positions in KEYS (from 1) of the schedules with such a member. A key of another
--          type is included: the claim then fails and reports it.
--
-- Atomic: all schedules of one moment. Read-only.

-- Counted, not read: a member may be long.
local latest = string.format('%.17g', redis_time().now - tonumber(ARGV[1]))
local due = {}
for i = 1, #KEYS do
  local waiting = redis.pcall('ZCOUNT', KEYS[i], '-inf', latest)
  if err_of(waiting) or waiting > 0 then due[#due + 1] = i end
end
return due
