-- Sample: what waits in these schedules, what is in quarantine, and how close is a waiting value to its expiry? One
-- call for many tenants.
--
-- KEYS[…]  threes: schedule, quarantine hash, losses
-- ARGV[1]  most values whose life is looked at in this call, over all schedules; what comes beyond is only counted
-- ARGV[2…] fives, one per three keys:
--          tenant prefix: only values whose key begins with it are looked at ('' = single-tenant)
--          head: how many members with the oldest scores are looked at
--          page: about how many more, from the cursor on, as the COUNT of ZSCAN (0 = none)
--          cursor: where that page begins ('0' = the beginning)
--          kept: a member to look at again if it is still scheduled ('' = none)
--
-- Result   one part per three keys: { scheduled, quarantined, lost } when nothing is scheduled, otherwise
--          { scheduled, quarantined, lost, due, oldest, cursor, life, member }
--          scheduled    members in the schedule; -1 = the key can't be read, and is looked at no further
--          quarantined  entries in quarantine; -1 = the key can't be read
--          lost         lost balances; -1 = the key can't be read
--          due          members whose time has come
--          oldest       how long the first of them has been due, in milliseconds
--          cursor       for the next page; '0' = the last page was looked at, '' = this page was not looked at
--          life         smallest remaining life among the values looked at, in milliseconds; -1 = none has one
--          member       whose life that is
--
-- Read-only. A schedule without members costs three commands.

local time = redis.call('TIME')
local shown = string.format('%s.%06d', time[1], time[2])
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local budget = tonumber(ARGV[1])

-- The number that a command gives, or -1 when the key holds something else.
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
    local life, shortest = -1, ''

    local function look(member)
      local own
      if prefix == '' then
        own = string.sub(member, 1, 7) ~= 'tenant:'
      else
        own = string.sub(member, 1, #prefix) == prefix
      end
      budget = budget - 1
      if not own then return end
      local left = count('PTTL', member)
      if left >= 0 and (life < 0 or left < life) then life, shortest = left, member end
    end

    local first = redis.call('ZRANGE', schedule, 0, math.max(0, math.min(head, budget) - 1), 'WITHSCORES')
    local oldest = math.max(0, now - math.max(0, tonumber(first[2])))
    local due = redis.call('ZCOUNT', schedule, '-inf', shown)
    if head > 0 and budget > 0 then
      for i = 1, #first, 2 do look(first[i]) end
    end
    if kept ~= '' and budget > 0 and redis.call('ZSCORE', schedule, kept) then look(kept) end
    if page > 0 and budget > 0 then
      local seen = redis.call('ZSCAN', schedule, cursor, 'COUNT', math.min(page, budget))
      for i = 1, #seen[2], 2 do look(seen[2][i]) end
      cursor = seen[1]
    else
      cursor = ''
    end
    result[n] = { scheduled, quarantined, lost, due, math.floor(oldest * 1000), cursor, life, shortest }
  end
end
return result
