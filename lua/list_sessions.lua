-- List sessions: those of the admin interface that have not lapsed, the one unused for longest first.
--
-- KEYS[1]  sessions (hash: field = SHA-256 of the session's id, value = creation time, blank, record)
-- KEYS[2]  last uses (sorted set: field of the hash, time of the last use)
-- ARGV[1]  idle timeout in milliseconds: a session not used for longer has lapsed
-- ARGV[2]  maximum age in milliseconds: an older session has lapsed
-- ARGV[3]  most sessions in the answer
--
-- Result   { session, record, created, used, session, record, created, used, ... }
--          session        SHA-256 of its id
--          created, used  seconds since 1970
--
-- Atomic: the whole list. Writes nothing.

local now, found = redis_time().now, {}
local uses = redis.call('ZRANGE', KEYS[2], 0, tonumber(ARGV[3]) - 1, 'WITHSCORES')
for i = 1, #uses, 2 do
  local created, record = read_session(KEYS[1], uses[i])
  if created and not session_lapsed(created, tonumber(uses[i + 1]), now) then
    for _, part in ipairs({ uses[i], record, created, uses[i + 1] }) do found[#found + 1] = part end
  end
end
return found
