-- Watch a tenant: read the details that its workers have published about it, and keep them publishing.
--
-- KEYS[1]   tenants watched in detail (sorted set: tenant, time at which the interest ends)
-- KEYS[2…]  records of workers (hashes)
-- ARGV[1]   tenant
-- ARGV[2]   duration of the interest, in milliseconds
--
-- Result    one detail per worker, in the order of the keys; false = none
--
-- Atomic: recording the interest, reading the details. Nothing relies on it.

local ends = redis_time().now + tonumber(ARGV[2]) / 1000
redis.call('ZADD', KEYS[1], string.format('%.17g', ends), ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])

local details = {}
for i = 2, #KEYS do details[i - 1] = redis.call('HGET', KEYS[i], 'd:' .. ARGV[1]) end
return details
