-- Retry or drop members of the quarantine or with a loss, for an operator.
--
-- KEYS[1]  schedule
-- KEYS[2]  quarantine hash
-- KEYS[3]  losses
-- ARGV[1]  'retry' or 'drop'
-- ARGV[2…] members
--
-- Result   { done, absent, listed }
--
-- Atomic: reading entries, scheduling, updating or deleting entries.
-- Retry schedules a member as due unless it is scheduled already. Its entry stays until a write settles it, so that its
-- copy of the value is there if the value in Redis has expired. The entry records the score: the copy may be written only
-- while no mutation has scheduled the member since. That score lies half-way between two microseconds, which no producer
-- writes, and a second ago, so that it is due at once. A lost member is looked up in Postgres again. `listed` counts those of
-- `done` that stay listed whatever is found: a loss that is confirmed, or that a later mutation followed; and a member that was
-- too long, which is not retried.
-- Drop deletes the entries.

local due = lease_score(redis_time(), -1000)
local done, absent, listed = 0, 0, 0

-- The entry of a member; nil if there is none or the key is of another type.
local function entry_of(key, member)
  local raw = redis.pcall('HGET', key, member)
  if type(raw) ~= 'string' then return nil end
  return decode(raw) or {}
end

local function drop(member, entry, loss)
  if entry then
    stop_keeping_alive(entry, member)
    redis.call('HDEL', KEYS[2], member)
  end
  if loss then redis.call('HDEL', KEYS[3], member) end
end

local function retry(member, entry, loss)
  -- Its entry stands under a name that was never scheduled.
  if entry and entry.reason == 'member_too_long' then
    listed = listed + 1
    return
  end
  if loss and (loss.confirmed ~= false or loss.later_at) then listed = listed + 1 end
  if redis.call('ZADD', KEYS[1], 'NX', due, member) == 0 then return end
  if entry and type(entry.value) == 'string' then
    entry.retry = { due, due }
    redis.call('HSET', KEYS[2], member, cjson.encode(entry))
  end
  if loss and type(loss.loss) == 'string' then
    loss.retry = due
    redis.call('HSET', KEYS[3], member, cjson.encode(loss))
  end
end

for i = 2, #ARGV do
  local member = ARGV[i]
  local entry, loss = entry_of(KEYS[2], member), entry_of(KEYS[3], member)
  if not entry and not loss then
    absent = absent + 1
  else
    done = done + 1
    if ARGV[1] == 'drop' then drop(member, entry, loss) else retry(member, entry, loss) end
  end
end
return { done, absent, listed }
