-- Count: members of many schedules, and some of them with their values, so that it shows when a schedule vanishes.
--
-- KEYS[…]  schedules
-- ARGV[1]  most members returned per schedule: half of them with the oldest scores, half with the newest
-- ARGV[2]  longest value in bytes that is returned
-- ARGV[3…] for each schedule the tenant prefix: only values whose key begins with it are read ('' = single-tenant)
--
-- Result   { { members, member, score, value, … } | -1, … }: one per schedule; -1 = the key is of another type
--
-- Atomic: all of one moment. Read-only. An empty schedule costs one command.

local most, longest = tonumber(ARGV[1]), tonumber(ARGV[2])
local result = {}
local spare = MEMBER_BYTES -- bytes of members that may still be read
for n = 1, #KEYS do
  local members = redis.pcall('ZCARD', KEYS[n])
  if err_of(members) then
    result[n] = -1
  else
    local found = { members }
    if members > 0 and most > 0 then
      local seen = {}
      local half = math.ceil(most / 2)
      local some = {}
      for _, first in ipairs({ 0, math.max(0, members - half) }) do
        local _, _, bytes = read_members(KEYS[n], first, half, spare, function(member, score)
          some[#some + 1], some[#some + 2] = member, score
        end)
        spare = spare - bytes
      end
      for i = 1, #some, 2 do
        local member = some[i]
        if #member <= LONGEST_MEMBER and not seen[member] and is_own(member, ARGV[n + 2]) then
          seen[member] = true
          local value = not too_large(member) and redis.pcall('GET', member)
          if type(value) == 'string' and #value <= longest then
            found[#found + 1] = member
            found[#found + 1] = some[i + 1]
            found[#found + 1] = value
          end
        end
      end
    end
    result[n] = found
  end
end
return result
