-- Use session: find a session of the admin interface, and note that it is in use.
--
-- KEYS[1]  sessions (hash: field = SHA-256 of the session's id, value = creation time, blank, record)
-- KEYS[2]  last uses (sorted set: field of the hash, time of the last use)
-- ARGV[1]  idle timeout in milliseconds: a session not used for longer has lapsed
-- ARGV[2]  maximum age in milliseconds: an older session has lapsed
-- ARGV[3]  SHA-256 of the session's id
-- ARGV[4]  the use is noted if the last one was this long ago, in milliseconds; '' = this is no use
--
-- Result   { record, created, used } or {} if there is no such session, or it has lapsed
--          created, used  seconds since 1970
--
-- Atomic: judging whether it has lapsed, and noting the use. A Redis that refuses writes still says who is signed in.

local session, time = ARGV[3], redis_time()
local created, record = read_session(KEYS[1], session)
local used = redis.call('ZSCORE', KEYS[2], session)
if not created or not used then return {} end
if session_lapsed(created, tonumber(used), time.now) then
  redis.pcall('HDEL', KEYS[1], session)
  redis.pcall('ZREM', KEYS[2], session)
  return {}
end
if ARGV[4] ~= '' and (time.now - tonumber(used)) * 1000 >= tonumber(ARGV[4]) then
  if not err_of(redis.pcall('ZADD', KEYS[2], 'XX', time.text, session)) then used = time.text end
end
return { record, created, used }
