-- Inspect a balance: everything that Redis knows about one member, for people.
--
-- KEYS[1]  schedule (sorted set)
-- KEYS[2]  quarantine hash of the tenant
-- KEYS[3]  the balance's value; also the member of the schedule
-- KEYS[4]  the claim lock of the member
-- KEYS[5]  losses of the tenant
--
-- Result   { now, score | false, value | false, life, lock | false, lock's life, quarantine entry | false, why | false,
--            loss | false }
--          now    Redis time, seconds with six decimals
--          lives  in milliseconds; -1 = without end, -2 = there is none
--          why    in words, when the value's key is there and can't be read
--
-- Atomic: one moment. Read-only. Where a key holds something else, all that can be told is told.

local function try(...)
  local answer = redis.pcall(...)
  if type(answer) == 'table' and answer.err then return false end
  return answer
end

local value, why = redis.pcall('GET', KEYS[3]), false
if type(value) == 'table' and value.err then
  local kind = try('TYPE', KEYS[3])
  why = kind and kind.ok ~= 'string' and 'its key is of type ' .. kind.ok or value.err
  value = false
end

local time = redis.call('TIME')
return {
  string.format('%s.%06d', time[1], time[2]),
  redis.call('ZSCORE', KEYS[1], KEYS[3]),
  value,
  redis.call('PTTL', KEYS[3]),
  try('GET', KEYS[4]),
  redis.call('PTTL', KEYS[4]),
  try('HGET', KEYS[2], KEYS[3]),
  why,
  try('HGET', KEYS[5], KEYS[3]),
}
