-- Watch a tenant: read what its workers have published about it in detail, and have them go on doing so.
--
-- KEYS[1]   tenants that somebody looks at in detail (sorted set: tenant, end of interest)
-- KEYS[2..] records of workers (hashes)
-- ARGV[1]   tenant
-- ARGV[2]   how long the interest lasts, in milliseconds
--
-- Result    one detail per worker, in the order of the keys; false = none
--
-- Atomic: nothing depends on it.

local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
redis.call('ZADD', KEYS[1], string.format('%.17g', now + tonumber(ARGV[2]) / 1000), ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])

local details = {}
for i = 2, #KEYS do details[i - 1] = redis.call('HGET', KEYS[i], 'd:' .. ARGV[1]) end
return details
