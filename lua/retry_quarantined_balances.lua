-- Retry or drop quarantined members by hand.
--
-- KEYS[1]  schedule
-- KEYS[2]  quarantine hash
-- ARGV[1]  'retry' or 'drop'
-- ARGV[2…] members
--
-- Result   { done, absent }
--
-- Retry schedules the member as due unless it is scheduled already; its entry stays until a write settles it, so
-- that its kept value is there if the value in Redis has expired. The entry remembers under which score: the kept
-- value may be written only while no mutation has scheduled the member since. That score lies half-way between two
-- microseconds, which no producer writes, and a second ago, so that it is due at once. Drop forgets the entry.

local time = redis.call('TIME')
local due = string.format('%d.%06d5', tonumber(time[1]) - 1, tonumber(time[2]))
local done, absent = 0, 0
for i = 2, #ARGV do
  local kept = redis.call('HGET', KEYS[2], ARGV[i])
  if not kept then
    absent = absent + 1
  else
    if ARGV[1] == 'drop' then
      redis.call('HDEL', KEYS[2], ARGV[i])
    elseif redis.call('ZADD', KEYS[1], 'NX', due, ARGV[i]) == 1 then
      local ok, entry = pcall(cjson.decode, kept)
      if ok and type(entry) == 'table' and type(entry.value) == 'string' then
        entry.retry = { due, due }
        redis.call('HSET', KEYS[2], ARGV[i], cjson.encode(entry))
      end
    end
    done = done + 1
  end
end
return { done, absent }
