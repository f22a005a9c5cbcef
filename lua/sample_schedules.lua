-- Sample: backlog, quarantine, losses and the smallest remaining TTL of scheduled values. One call for many tenants.
--
-- KEYS[…]  groups of three: schedule, quarantine hash, losses
-- ARGV[1]  budget: most values whose TTL is read in this call, over all schedules
-- ARGV[2…] groups of five, one per three keys:
--          tenant prefix: only TTLs of keys that begin with it are read ('' = single-tenant)
--          head: number of members with the oldest scores whose TTLs are read
--          page: about how many more, from the cursor on, as the COUNT of ZSCAN (0 = none)
--          cursor: where that page begins ('0' = the beginning)
--          kept: a member whose TTL is read if it is still scheduled ('' = none)
--
-- Result   one group per three keys: { scheduled, quarantined, lost } when nothing is scheduled, otherwise
--          { scheduled, quarantined, lost, due, oldest, cursor, ttl, member, ahead, unexplained, gone, further, lease }
--          scheduled    members in the schedule; -1 = the key can't be read
--          quarantined  entries in quarantine; -1 = the key can't be read
--          lost         lost balances; -1 = the key can't be read
--          due          members that are due
--          oldest       for how long the first of them has been due, in milliseconds
--          cursor       for the next page; '0' = this was the last page, '' = this page was not read
--          ttl          smallest remaining TTL that was read, in milliseconds; -1 = none has one
--          member       the member it belongs to
--          ahead        how far ahead the last member is scheduled, in milliseconds; 0 = it is due
--          unexplained  how far ahead one of a few others is that has the score of a mutation, in milliseconds; 0 = none has
--          gone         members of the head, and `kept`, whose values do not exist
--          further      members of the page whose values do not exist
--          lease        milliseconds until the first lease or delay ends; 0 = there is none
--
-- Atomic: all of one moment. Read-only. An empty schedule costs three commands.

local time = redis_time()
local budget = tonumber(ARGV[1])
local LOOKS_AHEAD = 4 -- members that are not due, of which the scores are read
local spare = MEMBER_BYTES -- bytes of members that may still be read; of each schedule at least one is

-- The number that a command returns; -1 when the key is of another type.
local function count(...)
  local answer = redis.pcall(...)
  return type(answer) == 'number' and answer or -1
end

local result = {}
for n = 1, #KEYS / 3 do
  local schedule, arg = KEYS[3 * n - 2], 2 + 5 * (n - 1)
  local scheduled = count('ZCARD', schedule)
  local quarantined, lost = count('HLEN', KEYS[3 * n - 1]), count('HLEN', KEYS[3 * n])
  if scheduled <= 0 then
    result[n] = { scheduled, quarantined, lost }
  else
    local prefix, head, page = ARGV[arg], tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 2])
    local cursor, kept = ARGV[arg + 3], ARGV[arg + 4]
    local ttl, shortest = -1, ''
    local gone, further, counted = 0, 0, {}

    -- Whether the value does not exist.
    local function read_ttl(member)
      budget, spare = budget - 1, spare - #member
      -- No ledger writes a value under a longer key.
      if #member > LONGEST_MEMBER or not is_own(member, prefix) then return end
      local left = count('PTTL', member)
      if left >= 0 and (ttl < 0 or left < ttl) then ttl, shortest = left, member end
      return left == -2
    end

    local function read_first(member)
      if read_ttl(member) and not counted[member] then gone, counted[member] = gone + 1, true end
    end

    local asked = math.min(head, budget)
    local since
    read_members(schedule, 0, math.max(1, asked), math.max(1, spare), function(member, score)
      since = since or tonumber(score)
      if asked > 0 then read_first(member) end
    end)
    local oldest = math.max(0, time.now - math.max(0, since))
    local due = redis.call('ZCOUNT', schedule, '-inf', time.text)
    local furthest = due < scheduled and tonumber(redis.call('ZRANGE', schedule, -1, -1, 'WITHSCORES')[2]) or 0
    local ahead = math.max(0, math.min(furthest - time.now, 1e9))
    local unexplained, lease = 0, 0
    if due < scheduled then
      local next = tonumber(redis.call('ZRANGE', schedule, due, due, 'WITHSCORES')[2])
      if is_lease(next) then lease = math.max(1, math.min(next - time.now, 1e9) * 1000) end
    end
    local first = furthest > time.now and scheduled - redis.call('ZCOUNT', schedule, unexplained_from(time), '+inf') or scheduled
    for at = first, scheduled - 1, math.max(1, math.ceil((scheduled - first) / LOOKS_AHEAD)) do
      local score = tonumber(redis.call('ZRANGE', schedule, at, at, 'WITHSCORES')[2])
      if not is_lease(score) then unexplained = math.max(unexplained, math.min(score - time.now, 1e9)) end
    end
    if kept ~= '' and budget > 0 and redis.call('ZSCORE', schedule, kept) then read_first(kept) end
    if page > 0 and budget > 0 and spare > 0 then
      cursor = scan_members(schedule, cursor, math.min(page, budget), function(member)
        if read_ttl(member) then further = further + 1 end
      end)
    else
      cursor = ''
    end
    local counts = { scheduled, quarantined, lost, due, math.floor(oldest * 1000), cursor, ttl, shortest, math.floor(ahead * 1000) }
    counts[10], counts[11], counts[12], counts[13] = math.floor(unexplained * 1000), gone, further, math.floor(lease)
    result[n] = counts
  end
end
return result
