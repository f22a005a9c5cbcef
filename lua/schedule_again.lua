-- Schedule again: make members due whose rows are behind, whoever holds them.
--
-- KEYS[1]  schedule
-- ARGV[1…] members
--
-- Result   number of members that were not scheduled
--
-- Atomic. A member that is due by the score of a mutation keeps that score. A lease ends by this, also one that has lapsed: what
-- its holder wrote may be lost, and then the holder must not settle it, however late Redis gets that. What the holder has not
-- written yet is written twice, which changes nothing.

local time = redis_time()
local added = 0
for from = 1, #ARGV, PAGE do
  local all, due = {}, {}
  for i = from, math.min(from + PAGE - 1, #ARGV) do all[#all + 1] = ARGV[i] end
  local scores = redis.call('ZMSCORE', KEYS[1], unpack(all))
  for n, member in ipairs(all) do
    local score = scores[n] and tonumber(scores[n])
    if not score then added = added + 1 end
    if not score or score > time.now or is_lease(score) then
      due[#due + 1], due[#due + 2] = time.text, member
    end
  end
  if #due > 0 then redis.call('ZADD', KEYS[1], unpack(due)) end
end
return added
