-- Record what a worker saw of its tenants, and until when it has recorded it.
--
-- KEYS[1]  periods (hash: run of a worker, 'until|text': the time until which it is recorded in milliseconds, and the period)
-- KEYS[2…] timelines, one per tenant with something to record (sorted set: score = time in milliseconds, member = 'id|text')
-- ARGV[1]  this run
-- ARGV[2]  1 = it has recorded before
-- ARGV[3]  the time until which it is recorded now
-- ARGV[4]  the period, as text
-- ARGV[5]  for how long entries and periods are kept, in milliseconds
-- ARGV[6]  most entries of a tenant
-- ARGV[7]  most periods
-- ARGV[…]  groups of 5: number of the timeline among KEYS[2…], 1 = record it only if that tenant has any entry, time, id, text. An entry
--          with the same time and id is replaced.
--
-- Result   1 = recorded; 0 = it is not: Redis has lost what this run had recorded before
--
-- Atomic: all of it. An entry whose call got no answer can be recorded again.

local LONGEST = 16 -- entries at one time that are looked through for the one to be replaced; one worker records one

local now = redis_time()
local oldest = string.format('%.0f', now.now * 1000 - tonumber(ARGV[5]))
local is_new = redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0
if is_new and ARGV[2] == '1' then return 0 end

if is_new then
  -- Room is made where one is added, and nowhere else.
  local all, periods = redis.call('HGETALL', KEYS[1]), {}
  for i = 1, #all, 2 do
    periods[#periods + 1] = { all[i], tonumber(string.match(all[i + 1], '^%d+')) or 0 }
  end
  table.sort(periods, function(a, b) return a[2] < b[2] end)
  for n, period in ipairs(periods) do
    if period[2] < tonumber(oldest) or #periods - n + 1 >= tonumber(ARGV[7]) then
      redis.call('HDEL', KEYS[1], period[1])
    end
  end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3] .. '|' .. ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[5])

local touched = {}
for i = 8, #ARGV, 5 do
  local key, at, id = KEYS[1 + tonumber(ARGV[i])], ARGV[i + 2], ARGV[i + 3]
  if ARGV[i + 1] == '0' or redis.call('EXISTS', key) == 1 then
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', key, at, at, 'LIMIT', 0, LONGEST)) do
      if string.sub(member, 1, #id + 1) == id .. '|' then redis.call('ZREM', key, member) end
    end
    redis.call('ZADD', key, at, id .. '|' .. ARGV[i + 4])
    touched[key] = true
  end
end
for key in pairs(touched) do
  redis.call('ZREMRANGEBYSCORE', key, '-inf', '(' .. oldest)
  local over = redis.call('ZCARD', key) - tonumber(ARGV[6])
  if over > 0 then
    for _, member in ipairs(redis.call('ZRANGE', key, 0, over - 1)) do redis.call('ZREM', key, member) end
  end
  redis.call('PEXPIRE', key, ARGV[5])
end
return 1
