-- Register: renew or end a worker's lease on its membership, and return the live workers.
--
-- KEYS[1]  workers (sorted set: name, time at which its lease ends)
-- ARGV[1]  name of this worker
-- ARGV[2]  lease in milliseconds (0 = it leaves)
--
-- Result   { held, { name, name, ... } }
--          held   1 = this worker's lease was still valid, 0 = it had expired, or is new
--          names  the workers with a valid lease; includes this one unless it leaves
--
-- Atomic: removing expired leases, renewing, reading. The key expires with the last lease. Claims don't depend on it.

local now = redis_time().now
local lease_ms = tonumber(ARGV[2])

drop_lapsed(KEYS[1], now)
local held = redis.call('ZSCORE', KEYS[1], ARGV[1]) and 1 or 0
if lease_ms > 0 then
  list_as_live(KEYS[1], ARGV[1], now, lease_ms)
else
  redis.call('ZREM', KEYS[1], ARGV[1])
end
local last = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if last[2] then redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', math.ceil(tonumber(last[2]) * 1000))) end
return { held, redis.call('ZRANGE', KEYS[1], 0, -1) }
