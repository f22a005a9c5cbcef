-- Give back: make due for the ledger's own worker what workers of ours hold of a schedule, a page at a time. For the end of our
-- service: no worker of ours serves the tenant any more.
--
-- KEYS[1]  schedule
-- KEYS[2]  rollout (hash: revision, …)
-- ARGV[1]  the revision by which no worker serves the tenant ('' = whichever there is, if it is only counted)
-- ARGV[2]  cursor, as ZSCAN takes it ('0' = from the beginning)
-- ARGV[3]  about how many members
-- ARGV[4]  lock prefix of the tenant
-- ARGV[5]  tenant prefix: only values whose key begins with it are touched ('' = single-tenant)
-- ARGV[6]  TTL in milliseconds that values get of which less than half of it is left (0 = off)
-- ARGV[7]  '1' = do it, '0' = only count
--
-- Result   { } = another revision is stored, and nothing was done; otherwise { cursor, seen, held, ahead, unlocked, locked, raised, gone }
--          cursor    for the next page; '0' = this was the last one
--          seen      members looked at
--          held      those with the score of a lease or delay of ours: due now
--          ahead     others that are not due yet: the ledger has given them their scores, and they stay as they are
--          unlocked  locks of ours, which are deleted
--          locked    locks of the ledger's own worker, which stay
--          raised    values whose TTL was raised
--          gone      names of those of the tenant's members that have no value: the ledger's worker takes them out unwritten
--
-- Atomic per page: comparing the revision, reading scores, moving, unlocking. No member is removed. Each that was held has another score
-- afterwards, which no lease has: a worker of ours that wakes up late settles nothing by its former lease. A lease that has lapsed moves
-- too; if the ledger's worker holds it, the member is written twice, which changes nothing.

local LEDGERS_TOKEN = '1' -- what the ledger's own worker sets its locks to

local lock_prefix, prefix, ttl_ms, acts = ARGV[4], ARGV[5], tonumber(ARGV[6]), ARGV[7] == '1'
if (acts or ARGV[1] ~= '') and redis.call('HGET', KEYS[2], 'revision') ~= ARGV[1] then return {} end
local time = redis_time()
local held, ahead, unlocked, locked, raised, gone = 0, 0, 0, 0, 0, {}

local function look(member, score)
  local number = tonumber(score)
  if is_lease(number) then
    held = held + 1
    if acts then redis.call('ZADD', KEYS[1], 'XX', time.text, member) end
  elseif number > time.now then
    ahead = ahead + 1
  end
  -- No ledger writes a member that long, and no claim returns one.
  if #member > LONGEST_MEMBER then return end
  local holder = redis.pcall('GET', lock_prefix .. member)
  if holder == LEDGERS_TOKEN then
    locked = locked + 1
  elseif type(holder) == 'string' then
    unlocked = unlocked + 1
    if acts then redis.call('DEL', lock_prefix .. member) end
  end
  if not is_own(member, prefix) then return end
  if redis.pcall('EXISTS', member) == 0 then
    gone[#gone + 1] = member
    return
  end
  if not acts or ttl_ms == 0 then return end
  local left = redis.pcall('PTTL', member)
  if type(left) == 'number' and left >= 0 and left < ttl_ms / 2 then
    local _, did_raise = raise_ttl(member, ttl_ms)
    if did_raise then raised = raised + 1 end
  end
end

local cursor, seen = scan_members(KEYS[1], ARGV[2], tonumber(ARGV[3]), look)
return { cursor, seen, held, ahead, unlocked, locked, raised, gone }
