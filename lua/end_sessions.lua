-- End sessions of the admin interface.
--
-- KEYS[1]  sessions (hash: field = SHA-256 of the session's id, value = creation time, blank, record)
-- KEYS[2]  last uses (sorted set: field of the hash, time of the last use)
-- ARGV[…]  SHA-256 of the ids of the sessions to end
--
-- Result   how many there were
--
-- Atomic: ending them all.

local ended = 0
for from = 1, #ARGV, PAGE do
  local to = math.min(from + PAGE - 1, #ARGV)
  ended = ended + redis.call('HDEL', KEYS[1], unpack(ARGV, from, to))
  redis.call('ZREM', KEYS[2], unpack(ARGV, from, to))
end
return ended
