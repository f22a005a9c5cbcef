-- Remove records of the fleet, which serves no tenant any more.
--
-- KEYS[1]  rollout (hash: revision, …)
-- KEYS[…]  keys of the fleet that are deleted as a whole
-- ARGV[1]  the revision by which no worker of ours serves any tenant
--
-- Result   { } = another revision is stored, and nothing was done; otherwise { removed }
--
-- Atomic: comparing and deleting. None of these keys is the ledger's. UNLINK frees large ones in the background.

if redis.call('HGET', KEYS[1], 'revision') ~= ARGV[1] then return {} end
local removed = 0
for n = 2, #KEYS do removed = removed + redis.call('UNLINK', KEYS[n]) end
return { removed }
