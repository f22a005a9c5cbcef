-- Mend the other form: balances were written that are in quarantine, or lost, under the other form of their tenant's id.
--
-- KEYS[1]  schedule of the other form
-- KEYS[2]  its quarantine hash
-- KEYS[3]  its losses
-- ARGV[…]  threes: member, as the other form names it; its quarantine entry as it was read, which is obsolete ('' = leave it);
--          '1' = mark its loss, '0' = leave it
--
-- Result   { cleared, marked }
--          cleared  entries removed from the quarantine
--          marked   losses that say now that a later mutation was written
--
-- Atomic: comparing and removing. An entry that was renewed since it was read stays. So does one whose member is scheduled: a
-- retry may need the value in it, and settles it by itself.

local time = redis_time()
local cleared, marked = 0, 0

for i = 1, #ARGV, 3 do
  local member, obsolete = ARGV[i], ARGV[i + 1]
  if obsolete ~= '' and not redis.call('ZSCORE', KEYS[1], member) and redis.pcall('HGET', KEYS[2], member) == obsolete then
    stop_keeping_alive(decode(obsolete) or {}, member)
    redis.call('HDEL', KEYS[2], member)
    cleared = cleared + 1
  end
  local lost = ARGV[i + 2] == '1' and redis.pcall('HGET', KEYS[3], member)
  local loss = type(lost) == 'string' and decode(lost)
  if loss and type(loss.loss) == 'string' then
    loss.later_at = time.text
    redis.call('HSET', KEYS[3], member, cjson.encode(loss))
    marked = marked + 1
  end
end
return { cleared, marked }
