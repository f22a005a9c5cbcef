-- Read a worker: what it has published since the reader's previous call (see `publish_worker.lua`).
--
-- KEYS[1]  records of the worker (hash)
-- KEYS[2]  changes of the worker (sorted set)
-- ARGV[1]  incarnation of the previous call ('' = none)
-- ARGV[2]  number returned by the previous call
-- ARGV[3]  most tenants in the answer; must be more than one call of the worker changes
--
-- Result   { incarnation, number, more, worker, tenant, record | false, tenant, ... }
--          number  the reader has everything up to this call of the worker
--          more    1 = there is more: call again with this number
--          record  false = the tenant is served no longer
--          Empty when the worker has published nothing, or its records have expired.
--
-- Atomic: all of one moment. Read-only.

local head = redis.call('HMGET', KEYS[1], 'incarnation', 'seq', 'worker')
if not head[1] or not head[3] then return {} end
local since = tonumber(ARGV[2])
if head[1] ~= ARGV[1] then since = 0 end

local limit = tonumber(ARGV[3])
local changed = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. since, '+inf', 'WITHSCORES', 'LIMIT', 0, limit)
local upto, more, last = tonumber(head[2]), 0, #changed
if #changed == 2 * limit then
  -- The page may hold only a part of the worker's last call, so that call is left for the next page.
  more, upto = 1, tonumber(changed[last]) - 1
  while last > 0 and tonumber(changed[last]) > upto do last = last - 2 end
end

local result = { head[1], upto, more, head[3] }
for i = 1, last, 2 do
  result[#result + 1] = changed[i]
  result[#result + 1] = redis.call('HGET', KEYS[1], 't:' .. changed[i])
end
return result
