-- Remove locks of ours whose members are not scheduled any more.
--
-- KEYS[1]  rollout (hash: revision, …)
-- KEYS[…]  claim locks
-- ARGV[1]  the revision by which no worker of ours serves their tenant
--
-- Result   { } = another revision is stored, and nothing was done; otherwise { removed }
--
-- Atomic: comparing and deleting. Those of the ledger's own worker stay.

local LEDGERS_TOKEN = '1' -- what the ledger's own worker sets its locks to

if redis.call('HGET', KEYS[1], 'revision') ~= ARGV[1] then return {} end
local removed = 0
for n = 2, #KEYS do
  local holder = redis.pcall('GET', KEYS[n])
  if type(holder) == 'string' and holder ~= LEDGERS_TOKEN then removed = removed + redis.call('DEL', KEYS[n]) end
end
return { removed }
