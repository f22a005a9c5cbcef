-- Claim due members of one tenant's schedule: a lease in the schedule itself.
--
-- KEYS[1]  schedule (sorted set: member = balance key, score = due time in seconds)
-- ARGV[1]  limit: most members to claim (>= 1)
-- ARGV[2]  claim TTL in milliseconds: the lease ends this long after now
-- ARGV[3]  protect floor in milliseconds: shorter remaining lives of claimed values are raised to it (0 = off)
-- ARGV[4]  tenant prefix: only values whose key begins with it are read ('' = single-tenant: keys that
--          begin with 'tenant:' are then the foreign ones)
-- ARGV[5]  quarantine hash of the tenant: supplies the kept value of a retried member whose value has expired
-- ARGV[6]  lock prefix ('' = mode `lease`; otherwise mode `lock`: each member's lock is taken too)
-- ARGV[7]  lock token (mode `lock`)
-- ARGV[8]  scan limit (mode `lock`): most members looked at in this call
-- ARGV[9]  offset (mode `lock`): how many due members to pass over, from a call that saw foreign locks only
--
-- Result   { now, lease, scheduled, resume, foreign, member, former score, value | false | status, member, ... }
--          now        Redis time, seconds with six decimals
--          lease      the lease score of every member in this answer
--          scheduled  members in the schedule, due or not
--          resume     offset for the next call (0 = from the head)
--          foreign    members passed over because another worker holds their lock
--          value      the string; false when there is none; a status reply that says why it can't be read, in words,
--                     when the key is there or may be
--
-- Atomic: reading what is due, moving each score to the end of the lease, reading the values.
-- The lease lies half-way between two microseconds. Producers write whole microseconds, so no producer can
-- write a score that equals a lease, and a mutation during the flush is always noticed.
-- Fewer than the limit come when their values are large: neither Redis nor the worker must hold any number of those.
-- A kept value stands in only while nothing but the retry, and claims since, has scheduled the member: once a newer
-- mutation came, the kept value is older than what was lost, and writing it would hide the loss.

local limit, scan_limit, offset = tonumber(ARGV[1]), tonumber(ARGV[8]), tonumber(ARGV[9])
local ttl_ms, floor_ms = tonumber(ARGV[2]), tonumber(ARGV[3])
local prefix, lock_prefix, token = ARGV[4], ARGV[6], ARGV[7]
local READ = 100 -- values read by one command
local BYTES = 16 * 1024 * 1024 -- values in one answer, but for the first of them: real ones have some 500 bytes
local PAGE = 1000 -- unpack() and the C stack of Lua take some 8,000 values; stay far below

-- What a command gives on a key that may hold anything, or lie where a cluster doesn't let us: nil then. One such key must
-- not keep the other members from being claimed.
local function try(...)
  local answer = redis.pcall(...)
  if type(answer) == 'table' and answer.err then return nil end
  return answer
end

-- Why a key that gave no value can't be read, in words; nil when it is just not there. For those only: it asks once more.
local function obstacle(key)
  local answer = redis.pcall('GET', key)
  if type(answer) ~= 'table' or not answer.err then return nil end
  local kind = try('TYPE', key)
  if kind and kind.ok ~= 'string' then return 'its key is of type ' .. kind.ok end
  return answer.err
end

local time = redis.call('TIME')
local now = string.format('%s.%06d', time[1], time[2])
local micros = tonumber(time[2]) + ttl_ms * 1000
local lease = string.format('%d.%06d5', tonumber(time[1]) + math.floor(micros / 1000000), micros % 1000000)

local members, formers = {}, {}
local resume, foreign = 0, 0

if lock_prefix == '' then
  local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'WITHSCORES', 'LIMIT', 0, limit)
  for i = 1, #due, 2 do
    members[#members + 1] = due[i]
    formers[#formers + 1] = due[i + 1]
  end
else
  local at, seen = offset, 0
  while #members < limit do
    if seen >= scan_limit then
      -- What was passed over stays where it is: go on behind it next time, or it would hide the rest for ever.
      -- What is claimed now is no longer due then.
      resume = at - #members
      break
    end
    local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'WITHSCORES', 'LIMIT', at, math.min(limit, PAGE))
    if #due == 0 then
      if seen > 0 or at == 0 then break end
      at = 0 -- the head has become shorter since: begin again
    end
    for i = 1, #due, 2 do
      local lock = lock_prefix .. due[i]
      local taken = try('SET', lock, token, 'NX', 'PX', ttl_ms)
      if not taken and try('GET', lock) == token then
        taken = redis.call('SET', lock, token, 'PX', ttl_ms)
      end
      seen, at = seen + 1, at + 1
      if taken then
        members[#members + 1] = due[i]
        formers[#formers + 1] = due[i + 1]
        if #members == limit then break end
      else
        foreign = foreign + 1
      end
    end
  end
end

local result = { now, lease, redis.call('ZCARD', KEYS[1]), resume, foreign }
local bytes, beyond = 0, nil
for first = 1, #members, READ do
  local last = math.min(first + READ - 1, #members)
  local scores, keys, at_key = {}, {}, {}
  for i = first, last do
    local member = members[i]
    scores[#scores + 1] = lease
    scores[#scores + 1] = member
    local own
    if prefix == '' then
      own = string.sub(member, 1, 7) ~= 'tenant:'
    else
      own = string.sub(member, 1, #prefix) == prefix
    end
    if own then
      keys[#keys + 1] = member
      at_key[i] = #keys
    end
  end
  redis.call('ZADD', KEYS[1], 'XX', unpack(scores))
  local values = {}
  if #keys > 0 then values = try('MGET', unpack(keys)) end
  if not values then
    values = {}
    for i = 1, #keys do values[i] = try('GET', keys[i]) or false end
  end
  for i = first, last do
    local member, value = members[i], false
    if at_key[i] then
      value = values[at_key[i]]
      if value then
        bytes = bytes + #value
        if bytes > BYTES and i > 1 then
          beyond = i
          break
        end
        if floor_ms > 0 then
          local left = try('PTTL', member) or -1
          if left >= 0 and left < floor_ms then redis.call('PEXPIRE', member, floor_ms) end
        end
      else
        local kept = try('HGET', ARGV[5], member)
        if kept then
          local ok, entry = pcall(cjson.decode, kept)
          local retry = ok and type(entry) == 'table' and entry.retry
          if type(retry) == 'table' and type(entry.value) == 'string' and not entry.truncated then
            local former = tonumber(formers[i])
            if former == tonumber(retry[1]) or former == tonumber(retry[2]) then
              value = entry.value
              -- Released, the member has its former score again; lapsed, it has this lease.
              entry.retry = { formers[i], lease }
              redis.call('HSET', ARGV[5], member, cjson.encode(entry))
            end
          end
        end
        if not value then
          local why = obstacle(member)
          value = why and { ok = why } or false
        end
      end
    end
    result[#result + 1] = member
    result[#result + 1] = formers[i]
    result[#result + 1] = value
  end
  if beyond then
    -- The rest is claimed next time: it is due as before, its locks are free, and reading on begins at the head.
    local back = {}
    for i = beyond, last do
      back[#back + 1] = formers[i]
      back[#back + 1] = members[i]
    end
    redis.call('ZADD', KEYS[1], 'XX', unpack(back))
    if lock_prefix ~= '' then
      for i = beyond, #members do redis.call('DEL', lock_prefix .. members[i]) end
    end
    result[4] = 0
    break
  end
end
return result
