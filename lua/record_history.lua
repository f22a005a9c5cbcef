-- Record how the fleet was in a minute.
--
-- KEYS[1]  history (hash: field = 'minute:run', minutes since 1970 and the run of the worker that recorded it; value = text)
-- ARGV[1]  minute
-- ARGV[2]  run of the worker
-- ARGV[3]  text; what this run has recorded of that minute before is replaced
-- ARGV[4]  minutes that are kept
-- ARGV[5]  most fields
--
-- Result   how many fields there are
--
-- Atomic: adding a minute and dropping the oldest. Two workers that record one minute don't overwrite each other.

redis.call('HSET', KEYS[1], ARGV[1] .. ':' .. ARGV[2], ARGV[3])
redis.call('EXPIRE', KEYS[1], tonumber(ARGV[4]) * 60)
local fields = redis.call('HLEN', KEYS[1])
if fields <= tonumber(ARGV[4]) then return fields end
local all, minutes = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #all, 2 do minutes[#minutes + 1] = { all[i], tonumber(string.match(all[i], '^%d+')) or 0 } end
table.sort(minutes, function(a, b) return a[2] < b[2] end)
local oldest = redis_time().seconds / 60 - tonumber(ARGV[4])
for n, minute in ipairs(minutes) do
  if minute[2] < oldest or #minutes - n >= tonumber(ARGV[5]) then fields = fields - redis.call('HDEL', KEYS[1], minute[1]) end
end
return fields
