-- Schedule again: make members due whose rows are behind, whoever holds them.
--
-- KEYS[1]  schedule
-- ARGV[1…] members
--
-- Result   number of members that were not scheduled
--
-- Atomic. Each member has another score afterwards: what its holder wrote may be lost, and then the holder must not settle it,
-- however late Redis gets that. A lease ends by this, also one that has lapsed. A member that is due by the score of a mutation
-- may be locked by the ledger's worker, which leaves the score and removes by it: it moves by a microsecond, and so stays as old
-- as it is. What the holder has not written yet is written twice, which changes nothing.

local time = redis_time()
local added = 0
for from = 1, #ARGV, PAGE do
  local all, due = {}, {}
  for i = from, math.min(from + PAGE - 1, #ARGV) do all[#all + 1] = ARGV[i] end
  local scores = redis.call('ZMSCORE', KEYS[1], unpack(all))
  for n, member in ipairs(all) do
    local score = scores[n] and tonumber(scores[n])
    if not score then added = added + 1 end
    local is_due = score and score <= time.now and not is_lease(score)
    due[#due + 1] = is_due and string.format('%.6f', score + 0.000001) or time.text
    due[#due + 1] = member
  end
  redis.call('ZADD', KEYS[1], unpack(due))
end
return added
