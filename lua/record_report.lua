-- Record for the report: take or renew the duty of writing it, and write into the record of a month.
--
-- KEYS[1]  the duty (string: incarnation of the worker that has it)
-- KEYS[2]  the month (hash)
-- ARGV[1]  incarnation: new for each process
-- ARGV[2]  lease of the duty in milliseconds; 0 = give it up
-- ARGV[3]  when the month's record expires, in milliseconds since 1970
-- ARGV[…]  fields and values to write
--
-- Result   { held, now }
--          held  0 = another worker has the duty, 1 = it was taken by this call, 2 = this worker had it already
--          now   Redis's time, in seconds
--
-- Atomic: looking at who has the duty, and writing. Only a worker that had the duty before this call writes, so that one which has lost it
-- overwrites nothing that its successor has counted.

local time = redis_time()
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return { 0, time.text } end
if ARGV[2] == '0' then
  if holder then redis.call('DEL', KEYS[1]) end
  return { 0, time.text }
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if not holder then return { 1, time.text } end
for from = 4, #ARGV, PAGE do
  redis.call('HSET', KEYS[2], unpack(ARGV, from, math.min(from + PAGE - 1, #ARGV)))
end
if #ARGV > 3 then redis.call('PEXPIREAT', KEYS[2], ARGV[3]) end
return { 2, time.text }
