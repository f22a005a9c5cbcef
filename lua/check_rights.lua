-- Check rights: which commands and keys the user may not use. Called after Redis has refused something for want of a right.
--
-- KEYS[…]  none: Redis would refuse the whole call for one key without a right
-- ARGV[1]  a key that doesn't exist, on which commands are tried
-- ARGV[2]  how many keys follow that are only read
-- ARGV[…]  keys that are tried for reading, and after those that are only read for writing as well
--
-- Result   { { command, command, ... }, { key, key, ... } }: those that are refused
--
-- Atomic, and changes nothing: rights are checked before a command looks at its arguments, and each command that writes is
-- called with arguments that it refuses, or for something that doesn't exist.

local key = ARGV[1]
local COMMANDS = {
  { 'GET', key }, { 'MGET', key }, { 'STRLEN', key }, { 'SET', key, '', 'XX' }, { 'DEL', key }, { 'UNLINK', key },
  { 'EXISTS', key }, { 'TYPE', key }, { 'TTL', key }, { 'PTTL', key }, { 'PERSIST', key }, { 'EXPIRE', key, 'x' }, { 'PEXPIRE', key, 'x' },
  { 'PEXPIREAT', key, 'x' }, { 'ZADD', key, 'XX', '0', 'x' }, { 'ZREM', key, 'x' }, { 'ZREMRANGEBYSCORE', key, 'x', 'x' },
  { 'ZCARD', key }, { 'ZCOUNT', key, '0', '0' }, { 'ZRANGE', key, '0', '0' }, { 'ZRANGEBYSCORE', key, '0', '0' },
  { 'ZREVRANGE', key, '0', '0' }, { 'ZSCORE', key, 'x' }, { 'ZMSCORE', key, 'x' }, { 'ZSCAN', key, '0' },
  { 'HGET', key, 'x' }, { 'HMGET', key, 'x' }, { 'HGETALL', key }, { 'HEXISTS', key, 'x' }, { 'HLEN', key },
  { 'HSCAN', key, '0' }, { 'HRANDFIELD', key, '-1' }, { 'HSTRLEN', key, 'x' }, { 'HSET', key, 'x', 'x', 'x' }, { 'HDEL', key, 'x' }, { 'XADD', key, 'x', 'x', 'x' },
  { 'XRANGE', key, '-', '+' }, { 'XREVRANGE', key, '+', '-' }, { 'TIME' },
}
-- By any of these it shows whether a key may be read, or written: more than one, as some may be refused as commands.
local READING = { { 'GET' }, { 'ZSCORE', 'x' }, { 'HGET', 'x' } }
local WRITING = { { 'PEXPIRE', 'x' }, { 'ZADD', 'x', 'x' }, { 'HSET', 'x', 'x', 'x' } }

-- Whether the user may not run this command; and whether it may not use its key.
local function denied(...)
  local err = err_of(redis.pcall(...))
  if not err then return false, false end
  if not is_denial(err) then return false, false end
  local is_command = string.find(err, ' run ', 1, true) ~= nil
  return is_command, not is_command
end

local commands, keys = {}, {}
for _, command in ipairs(COMMANDS) do
  if denied(unpack(command)) then commands[#commands + 1] = command[1] end
end

local function may_not(ways, tried)
  for _, way in ipairs(ways) do
    local command, of_key = denied(way[1], tried, unpack(way, 2))
    if not command then return of_key end
  end
  return false
end

local only_read = tonumber(ARGV[2])
for i = 3, #ARGV do
  if may_not(READING, ARGV[i]) or (i > 2 + only_read and may_not(WRITING, ARGV[i])) then keys[#keys + 1] = ARGV[i] end
end
return { commands, keys }
