-- Forget a tenant: delete what workers of ours have written down about it, beside its quarantine and losses.
--
-- KEYS[1]  rollout (hash: revision, …)
-- KEYS[2]  paused tenants (hash: schedule key, record)
-- KEYS[3]  acknowledged entries (hash: schedule key, record)
-- KEYS[4]  events (hash: schedule key, number)
-- KEYS[5]  open conditions (hash: tenant, record)
-- KEYS[6]  what is known of the ledger's own worker (hash: tenant, record)
-- KEYS[7]  Postgres servers (hash: tenant, record)
-- KEYS[8]  record of its recovery
-- KEYS[9]  request to stop it
-- KEYS[10] lease of it
-- KEYS[…]  keys of the tenant that are deleted as a whole
-- ARGV[1]  the revision by which no worker of ours serves the tenant
-- ARGV[2]  '1' = do it, '0' = only count
-- ARGV[3]  '1' = an open condition and pauses stay: nobody has acknowledged them
-- ARGV[4]  tenant
-- ARGV[…]  its schedules
--
-- Result   { } = another revision is stored, and nothing was done; otherwise { records, conditions, pauses, recoveries }
--          records     how many there were, without what stays
--          conditions  open ones that stay
--          pauses      those that stay
--          recoveries  1 = one is under way: what belongs to it stays
--
-- Atomic: all of it. None of these keys is the ledger's.

if redis.call('HGET', KEYS[1], 'revision') ~= ARGV[1] then return {} end
local acts, spares, records = ARGV[2] == '1', ARGV[3] == '1', 0
local conditions, pauses, recoveries = 0, 0, 0

-- A key of another type holds nothing of ours.
local function has(key, field)
  return redis.pcall('HEXISTS', key, field) == 1
end

local function forget(key, field)
  if not has(key, field) then return end
  records = records + 1
  if acts then redis.call('HDEL', key, field) end
end

for n = 5, #ARGV do
  if spares and has(KEYS[2], ARGV[n]) then
    pauses = pauses + 1
  else
    forget(KEYS[2], ARGV[n])
  end
  for key = 3, 4 do forget(KEYS[key], ARGV[n]) end
end
if spares and has(KEYS[5], ARGV[4]) then
  conditions = 1
else
  forget(KEYS[5], ARGV[4])
end
for key = 6, 7 do forget(KEYS[key], ARGV[4]) end
local first = 8
if redis.call('EXISTS', KEYS[10]) == 1 then
  recoveries, first = 1, 11
end
for key = first, #KEYS do
  if redis.call('EXISTS', KEYS[key]) == 1 then
    records = records + 1
    if acts then redis.call('DEL', KEYS[key]) end
  end
end
return { records, conditions, pauses, recoveries }
