-- Publish: the state of a worker and of the tenants it serves, for readers of the fleet's state.
--
-- KEYS[1]  workers of the group (sorted set: name, time until which it counts as live)
-- KEYS[2]  records of this worker (hash: `incarnation`, `seq`, `worker`, `t:<tenant>`, `d:<tenant>`)
-- KEYS[3]  changes of this worker (sorted set: tenant, number of the call that changed its record last)
-- KEYS[4]  tenants watched in detail (sorted set: tenant, time at which the interest ends)
-- KEYS[5]  dead workers of the group (sorted set: name, time until which it counted as live)
-- KEYS[6]  groups (sorted set: KEYS[1] of a group, time until which one of its workers counts as live)
-- ARGV[1]  name of this worker
-- ARGV[2]  how long the worker counts as live after this call, in milliseconds
-- ARGV[3]  incarnation: new for each process, and whenever the process starts over
-- ARGV[4]  number of this call, 1 = start over
-- ARGV[5]  1 = this call makes the worker visible, 0 = more pages follow
-- ARGV[6]  record of the worker
-- ARGV[7]  number of tenants' records that follow, then `tenant, record` for each ('' = the tenant is served no longer)
-- ARGV[…]  after them `tenant, detail` for each detail
--
-- Result   { accepted, { tenant, tenant, ... } }
--          accepted  0 = Redis lacks what the preceding calls wrote: nothing was done, start over
--          tenants   those watched in detail
--
-- Atomic: checking the number, writing all records. Readers never see half a call. What a worker published last outlives it:
-- while Redis refuses writes, no worker can publish, and readers fall back to it. A worker whose time has passed without its
-- taking leave counts as dead for a while, unless it publishes again.

local KEPT_MS = 3600000 -- how long records are kept after the last call
local DEAD_SECONDS = 900 -- how long a dead worker is reported

local name, life_ms = ARGV[1], tonumber(ARGV[2])
local seq = tonumber(ARGV[4])
local now = redis_time().now

if seq == 1 then
  redis.call('DEL', KEYS[2], KEYS[3])
else
  local stored = redis.call('HMGET', KEYS[2], 'incarnation', 'seq')
  if stored[1] ~= ARGV[3] or tonumber(stored[2]) ~= seq - 1 then return { 0, {} } end
end

redis.call('HSET', KEYS[2], 'incarnation', ARGV[3], 'seq', seq, 'worker', ARGV[6])
local tenants = tonumber(ARGV[7])
for i = 8, 7 + 2 * tenants, 2 do
  if ARGV[i + 1] == '' then
    redis.call('HDEL', KEYS[2], 't:' .. ARGV[i], 'd:' .. ARGV[i])
  else
    redis.call('HSET', KEYS[2], 't:' .. ARGV[i], ARGV[i + 1])
  end
  redis.call('ZADD', KEYS[3], seq, ARGV[i])
end
for i = 8 + 2 * tenants, #ARGV, 2 do
  redis.call('HSET', KEYS[2], 'd:' .. ARGV[i], ARGV[i + 1])
end
redis.call('PEXPIRE', KEYS[2], KEPT_MS)
redis.call('PEXPIRE', KEYS[3], KEPT_MS)

local listed = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 1, #listed, 2 do
  if tonumber(listed[i + 1]) <= now then redis.call('ZADD', KEYS[5], listed[i + 1], listed[i]) end
end
redis.call('ZREM', KEYS[5], name)
drop_lapsed(KEYS[5], now - DEAD_SECONDS)
redis.call('PEXPIRE', KEYS[5], KEPT_MS)
drop_lapsed(KEYS[1], now)
drop_lapsed(KEYS[6], now)
if ARGV[5] == '1' then
  list_as_live(KEYS[1], name, now, life_ms)
  list_as_live(KEYS[6], KEYS[1], now, life_ms)
end
redis.call('PEXPIRE', KEYS[6], KEPT_MS)
redis.call('PEXPIRE', KEYS[1], KEPT_MS)

redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', string.format('%.17g', now))
return { 1, redis.call('ZRANGE', KEYS[4], 0, -1) }
