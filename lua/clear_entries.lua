-- Clear entries of quarantine and losses that are settled, written down elsewhere, or left to the ledger's own worker.
--
-- KEYS[1]  schedule
-- KEYS[2]  quarantine hash
-- KEYS[3]  losses
-- KEYS[4]  rollout (hash: revision, …)
-- ARGV[1]  the revision by which no worker of ours serves the tenant
-- ARGV[…]  fours: member; its quarantine entry as it was read ('' = there was none); its loss as it was read ('' = there was none);
--          '1' = schedule the member for the ledger's own worker, '0' = don't
--
-- Result   { } = another revision is stored, and nothing was done; otherwise { cleared, scheduled, changed }
--          cleared    members whose entries are deleted
--          scheduled  those among them that were not scheduled before
--          changed    members whose entries are others than were read, or that are to be scheduled and have no value any more: they stay
--
-- Atomic: comparing revision and entries, scheduling, deleting. A member is scheduled by a score that a producer could have
-- written, unless it is scheduled already, and its value gets a day to live. A value that was kept alive for its entry gets a TTL again.

if redis.call('HGET', KEYS[4], 'revision') ~= ARGV[1] then return {} end
local time = redis_time()
local cleared, scheduled, changed = 0, 0, 0

-- The entry of a member; '' if there is none.
local function entry_of(key, member)
  local raw = redis.pcall('HGET', key, member)
  return type(raw) == 'string' and raw or ''
end

for i = 2, #ARGV, 4 do
  local member, entry, loss = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local schedules = ARGV[i + 3] == '1'
  if entry_of(KEYS[2], member) ~= entry or entry_of(KEYS[3], member) ~= loss
    or (schedules and redis.pcall('EXISTS', member) == 0) then
    changed = changed + 1
  else
    if schedules then
      raise_ttl(member, 1000 * KEEP_ALIVE_SECONDS)
      scheduled = scheduled + redis.call('ZADD', KEYS[1], 'NX', time.text, member)
    end
    if entry ~= '' then
      stop_keeping_alive(decode(entry) or {}, member)
      redis.call('HDEL', KEYS[2], member)
    end
    if loss ~= '' then redis.call('HDEL', KEYS[3], member) end
    cleared = cleared + 1
  end
end
return { cleared, scheduled, changed }
