-- Protect, between two whole sweeps: members scheduled since a moment, so that a value with a short life that came
-- after the sweep is raised as well. Costs as much as there are new mutations, not as much as there is backlog.
--
-- KEYS[1]  schedule
-- ARGV[1]  from: score at which to begin, '-' = nothing to do but tell the time
-- ARGV[2]  offset within that range
-- ARGV[3]  page size
-- ARGV[4]  protect floor in milliseconds
-- ARGV[5]  tenant prefix: only values whose key begins with it are touched ('' = single-tenant)
--
-- Result   { now, seen, raised }
--
-- Atomic per page.

local time = redis.call('TIME')
local now = string.format('%s.%06d', time[1], time[2])
if ARGV[1] == '-' then return { now, 0, 0 } end
local floor_ms, prefix = tonumber(ARGV[4]), ARGV[5]
local page = redis.call('ZRANGEBYSCORE', KEYS[1], ARGV[1], '+inf', 'LIMIT', ARGV[2], ARGV[3])
local raised = 0
for i = 1, #page do
  local own
  if prefix == '' then
    own = string.sub(page[i], 1, 7) ~= 'tenant:'
  else
    own = string.sub(page[i], 1, #prefix) == prefix
  end
  if own then
    local left = redis.call('PTTL', page[i])
    if left >= 0 and left < floor_ms then
      redis.call('PEXPIRE', page[i], floor_ms)
      raised = raised + 1
    end
  end
end
return { now, #page, raised }
