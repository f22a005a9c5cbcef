-- Inspect a balance: everything that Redis knows about one member, for people.
--
-- KEYS[1]  schedule (sorted set)
-- KEYS[2]  quarantine hash of the tenant
-- KEYS[3]  the balance's value; also the member of the schedule
-- KEYS[4]  the claim lock of the member
--
-- Result   { now, score | false, value | false, life, lock | false, lock's life, quarantine entry | false }
--          now    Redis time, seconds with six decimals
--          lives  in milliseconds; -1 = without end, -2 = there is none
--
-- Atomic: one moment. Read-only.

local time = redis.call('TIME')
return {
  string.format('%s.%06d', time[1], time[2]),
  redis.call('ZSCORE', KEYS[1], KEYS[3]),
  redis.call('GET', KEYS[3]),
  redis.call('PTTL', KEYS[3]),
  redis.call('GET', KEYS[4]),
  redis.call('PTTL', KEYS[4]),
  redis.call('HGET', KEYS[2], KEYS[3]),
}
