-- Inspect: everything that Redis holds about one balance, for operators.
--
-- KEYS[1]  schedule (sorted set)
-- KEYS[2]  quarantine hash of the tenant
-- KEYS[3]  the balance's value; also the member of the schedule
-- KEYS[4]  the claim lock of the member
-- KEYS[5]  losses of the tenant
--
-- Result   { now, score | false, value | false, value's TTL, lock | false, lock's TTL, quarantine entry | false,
--            reason | false, loss | false }
--          now     Redis time, seconds with six decimals
--          TTLs    remaining, in milliseconds; -1 = no TTL, -2 = no key
--          reason  why the value can't be read, or is not read for its size, although its key exists
--
-- Atomic: all of one moment. Read-only. A lock, quarantine or losses key of another type is returned as false.

local function try(...)
  local answer = redis.pcall(...)
  if err_of(answer) then return false end
  return answer
end

local size = too_large(KEYS[3])
local value, reason = not size and redis.pcall('GET', KEYS[3]), false
if size then
  reason = string.format('it has %d bytes; allowed: at most %d', size, LONGEST_VALUE)
elseif err_of(value) then
  local kind = try('TYPE', KEYS[3])
  reason = kind and kind.ok ~= 'string' and 'its key is of type ' .. kind.ok or value.err
  value = false
end

return {
  redis_time().text,
  redis.call('ZSCORE', KEYS[1], KEYS[3]),
  value,
  redis.call('PTTL', KEYS[3]),
  try('GET', KEYS[4]),
  redis.call('PTTL', KEYS[4]),
  try('HGET', KEYS[2], KEYS[3]),
  reason,
  try('HGET', KEYS[5], KEYS[3]),
}
