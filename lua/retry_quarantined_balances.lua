-- Retry or drop by hand: members in quarantine, and lost ones.
--
-- KEYS[1]  schedule
-- KEYS[2]  quarantine hash
-- KEYS[3]  losses
-- ARGV[1]  'retry' or 'drop'
-- ARGV[2…] members
--
-- Result   { done, absent }
--
-- Retry schedules the member as due unless it is scheduled already; its entry stays until a write settles it, so
-- that its kept value is there if the value in Redis has expired. The entry remembers under which score: the kept
-- value may be written only while no mutation has scheduled the member since. That score lies half-way between two
-- microseconds, which no producer writes, and a second ago, so that it is due at once. Drop forgets the entries.
-- A lost member that is retried is looked up in Postgres again.

local KEEP_ALIVE = 86400 -- seconds that a value may live again that was kept without end for its entry
local time = redis.call('TIME')
local due = string.format('%d.%06d5', tonumber(time[1]) - 1, tonumber(time[2]))
local done, absent = 0, 0

-- The entry as text, and read; nothing where the key holds something else.
local function get(key, member)
  local kept = redis.pcall('HGET', key, member)
  if type(kept) ~= 'string' then return nil end
  local ok, entry = pcall(cjson.decode, kept)
  return kept, ok and type(entry) == 'table' and entry or {}
end

for i = 2, #ARGV do
  local member = ARGV[i]
  local kept, entry = get(KEYS[2], member)
  local lost, loss = get(KEYS[3], member)
  if not kept and not lost then
    absent = absent + 1
  else
    done = done + 1
    if ARGV[1] == 'drop' then
      if kept then
        if entry.kept_alive == true and redis.pcall('TTL', member) == -1 then redis.pcall('EXPIRE', member, KEEP_ALIVE) end
        redis.call('HDEL', KEYS[2], member)
      end
      if lost then redis.call('HDEL', KEYS[3], member) end
    elseif redis.call('ZADD', KEYS[1], 'NX', due, member) == 1 then
      if kept and type(entry.value) == 'string' then
        entry.retry = { due, due }
        redis.call('HSET', KEYS[2], member, cjson.encode(entry))
      end
      if lost and type(loss.loss) == 'string' then
        loss.retry = due
        redis.call('HSET', KEYS[3], member, cjson.encode(loss))
      end
    end
  end
end
return { done, absent }
