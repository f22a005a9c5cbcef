-- Open session: list a session of the admin interface, and end the oldest ones beyond the limits.
--
-- KEYS[1]  sessions (hash: field = SHA-256 of the session's id, value = creation time, blank, record)
-- KEYS[2]  last uses (sorted set: field of the hash, time of the last use)
-- ARGV[1]  idle timeout in milliseconds: a session not used for longer has lapsed
-- ARGV[2]  maximum age in milliseconds: an older session has lapsed
-- ARGV[3]  most sessions with one name
-- ARGV[4]  most sessions
-- ARGV[5]  SHA-256 of the session's id
-- ARGV[6]  record (JSON object with `name`)
--
-- Result   how many sessions were ended because there were too many
--
-- Atomic: dropping what has lapsed, counting, ending the ones unused for longest, adding. Neither id nor token is ever seen here.

local most_of_name, most = tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis_time()

-- More than this script ever lists: lost last uses, or a foreign hand. Their users sign in again.
if redis.call('HLEN', KEYS[1]) > most or redis.call('ZCARD', KEYS[2]) > most then redis.call('DEL', KEYS[1], KEYS[2]) end

local name = cjson.decode(ARGV[6]).name
local uses = redis.call('ZRANGE', KEYS[2], 0, -1, 'WITHSCORES')
local all, of_name = {}, {}
local function finish(session)
  redis.call('HDEL', KEYS[1], session)
  redis.call('ZREM', KEYS[2], session)
end
for i = 1, #uses, 2 do
  local created, record = read_session(KEYS[1], uses[i])
  if not created or session_lapsed(created, tonumber(uses[i + 1]), time.now) then
    finish(uses[i])
  else
    all[#all + 1] = uses[i]
    local before = decode(record)
    if before and before.name == name then of_name[#of_name + 1] = uses[i] end
  end
end

-- Both lists begin with the session that was unused for longest.
local ended = 0
if #of_name >= most_of_name then
  finish(of_name[1])
  ended = 1
elseif #all >= most then
  finish(all[1])
  ended = 1
end
redis.call('HSET', KEYS[1], ARGV[5], time.text .. ' ' .. ARGV[6])
redis.call('ZADD', KEYS[2], time.text, ARGV[5])
-- None outlives the maximum age, so neither does the list.
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return ended
