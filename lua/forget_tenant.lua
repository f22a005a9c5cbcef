-- Forget a tenant: delete what workers of ours have written down about it, beside its quarantine and losses.
--
-- KEYS[1]  rollout (hash: revision, …)
-- KEYS[2]  paused tenants (hash: schedule key, record)
-- KEYS[3]  acknowledged entries (hash: schedule key, record)
-- KEYS[4]  events (hash: schedule key, number)
-- KEYS[5]  open conditions (hash: tenant, record)
-- KEYS[6]  what is known of the ledger's own worker (hash: tenant, record)
-- KEYS[7]  Postgres servers (hash: tenant, record)
-- KEYS[…]  keys of the tenant that are deleted as a whole
-- ARGV[1]  the revision by which no worker of ours serves the tenant
-- ARGV[2]  '1' = do it, '0' = only count
-- ARGV[3]  tenant
-- ARGV[…]  its schedules
--
-- Result   { } = another revision is stored, and nothing was done; otherwise { records }: how many there were
--
-- Atomic: all of it. None of these keys is the ledger's.

if redis.call('HGET', KEYS[1], 'revision') ~= ARGV[1] then return {} end
local acts, records = ARGV[2] == '1', 0

local function forget(key, field)
  -- A key of another type holds nothing of ours.
  local found = redis.pcall('HEXISTS', key, field)
  if found ~= 1 then return end
  records = records + 1
  if acts then redis.call('HDEL', key, field) end
end

for n = 4, #ARGV do
  for key = 2, 4 do forget(KEYS[key], ARGV[n]) end
end
for key = 5, 7 do forget(KEYS[key], ARGV[3]) end
for key = 8, #KEYS do
  if redis.call('EXISTS', KEYS[key]) == 1 then
    records = records + 1
    if acts then redis.call('DEL', KEYS[key]) end
  end
end
return { records }
