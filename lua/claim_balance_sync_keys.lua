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
-- ARGV[10] how long members are put off whose values Redis refuses to give while it gives others, milliseconds
--
-- Result   { now, lease, scheduled, resume, foreign, put off, refusal, member, former score, value | false | status, ... }
--          now        Redis time, seconds with six decimals
--          lease      the lease score of every member in this answer
--          scheduled  members in the schedule, due or not
--          resume     offset for the next call (0 = from the head)
--          foreign    members passed over because another worker holds their lock
--          put off    members whose values Redis refuses to give: due again after ARGV[10]
--          refusal    why, in Redis's words; with nothing put off: why values can't be kept alive. '' = nothing was refused
--          value      the string; false when there is none; a status reply that says why it can't be read, in words,
--                     when the fault is this balance's: its key is of another type, or lies outside the tenant's slot
-- Error    what Redis answered, when it refuses to give the values: nothing is claimed, every score is as it was.
--
-- Atomic: reading what is due, moving each score to the end of the lease, reading the values.
-- A refusal that every balance of the tenant would meet (access rights, a slot that moves, undeclared keys) is no property
-- of the balances. Access rights may concern some keys only: those are put off, so that they don't hide the others.
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

-- What Redis refused, in its words; nil for any other answer.
local function err_of(answer)
  return type(answer) == 'table' and answer.err or nil
end

local function has(text, words)
  return string.find(text, words, 1, true) ~= nil
end

-- A refusal that may concern one key and not the next.
local function by_key(err)
  return has(err, 'NOPERM') or has(err, 'The user executing the script')
end

local function is_own(member)
  if prefix == '' then return string.sub(member, 1, 7) ~= 'tenant:' end
  return string.sub(member, 1, #prefix) == prefix
end

-- Whether a member lies in the slot of the schedule, as every key of the ledger does.
local function in_slot(member)
  return string.match(member, '{([^}]*)}') == 'transactions'
end

-- Why a key that gave no value can't be read: its own fault in words, or nil and the refusal; nothing when it is just not
-- there. For those only: it asks once more.
local function obstacle(key)
  local err = err_of(redis.pcall('GET', key))
  if not err then return nil end
  if not has(err, 'WRONGTYPE') then return nil, err end
  local kind = redis.pcall('TYPE', key)
  return kind.ok and 'its key is of type ' .. kind.ok or err
end

local time = redis.call('TIME')
local now = string.format('%s.%06d', time[1], time[2])
local function score_after(delay_ms)
  local micros = tonumber(time[2]) + delay_ms * 1000
  return string.format('%d.%06d5', tonumber(time[1]) + math.floor(micros / 1000000), micros % 1000000)
end
local lease, later = score_after(ttl_ms), score_after(tonumber(ARGV[10]))

local members, formers = {}, {}
local resume, foreign = 0, 0
local moved = 0 -- how many of the members have been given another score

local function unlock(from)
  if lock_prefix == '' then return end
  for i = from, #members do redis.pcall('DEL', lock_prefix .. members[i]) end
end

-- Ends the call with nothing claimed.
local function refuse(err)
  for first = 1, moved, PAGE do
    local back = {}
    for i = first, math.min(first + PAGE - 1, moved) do
      back[#back + 1] = formers[i]
      back[#back + 1] = members[i]
    end
    redis.call('ZADD', KEYS[1], 'XX', unpack(back))
  end
  unlock(1)
  return redis.error_reply(err)
end

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
      local taken = redis.pcall('SET', lock, token, 'NX', 'PX', ttl_ms)
      if err_of(taken) then return refuse(taken.err) end
      if not taken and redis.pcall('GET', lock) == token then
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

local result = { now, lease, redis.call('ZCARD', KEYS[1]), resume, foreign, 0, '' }
local bytes, readable, put_off, refusal = 0, 0, 0, nil
local first = 1
while first <= #members do
  local last = math.min(first + READ - 1, #members)
  local keys, at_key = {}, {}
  for i = first, last do
    if is_own(members[i]) and in_slot(members[i]) then
      keys[#keys + 1] = members[i]
      at_key[i] = #keys
    end
  end
  local values = {}
  if #keys > 0 then values = redis.pcall('MGET', unpack(keys)) end
  if err_of(values) then
    values = {}
    for i = 1, #keys do values[i] = redis.pcall('GET', keys[i]) end
  end

  -- What each member gives; nothing is changed before all of this page is known.
  local scores, alive, retried, back = {}, {}, {}, {}
  local beyond
  for i = first, last do
    local member, value, why, err = members[i], false, nil, nil
    if at_key[i] then
      value = values[at_key[i]]
      err = err_of(value)
      if err then
        value = false
        if has(err, 'WRONGTYPE') then why, err = obstacle(member) end
      end
    elseif is_own(member) then
      value = redis.pcall('GET', member)
      if err_of(value) then why, value = value.err, false end
    end
    if value then
      bytes = bytes + #value
      if bytes > BYTES and i > 1 then
        beyond = i
        break
      end
      alive[#alive + 1] = member
    elseif is_own(member) and not err then
      local kept = redis.pcall('HGET', ARGV[5], member)
      if kept and not err_of(kept) then
        local ok, entry = pcall(cjson.decode, kept)
        local retry = ok and type(entry) == 'table' and entry.retry
        if type(retry) == 'table' and type(entry.value) == 'string' and not entry.truncated then
          local former = tonumber(formers[i])
          if former == tonumber(retry[1]) or former == tonumber(retry[2]) then
            value = entry.value
            -- Released, the member has its former score again; lapsed, it has this lease.
            entry.retry = { formers[i], lease }
            retried[#retried + 1] = member
            retried[#retried + 1] = cjson.encode(entry)
          end
        end
      end
      if not value and not why and at_key[i] then why, err = obstacle(member) end
      if not value and why then value = { ok = why } end
    end
    if err then
      if not by_key(err) then return refuse(err) end
      refusal, put_off = refusal or err, put_off + 1
      scores[#scores + 1] = later
    else
      if at_key[i] then readable = readable + 1 end
      scores[#scores + 1] = lease
      back[#back + 1] = member
      back[#back + 1] = formers[i]
      back[#back + 1] = value
    end
    scores[#scores + 1] = member
  end

  if #scores > 0 then redis.call('ZADD', KEYS[1], 'XX', unpack(scores)) end
  moved = moved + #scores / 2
  if #retried > 0 then redis.pcall('HSET', ARGV[5], unpack(retried)) end
  if floor_ms > 0 then
    for i = 1, #alive do
      local left = redis.pcall('PTTL', alive[i])
      if type(left) == 'number' and left >= 0 and left < floor_ms then left = redis.pcall('PEXPIRE', alive[i], floor_ms) end
      refusal = refusal or err_of(left)
    end
  end
  for i = 1, #back do result[#result + 1] = back[i] end
  if beyond then
    -- The rest is claimed next time: it is due as before, its locks are free, and reading on begins at the head.
    unlock(beyond)
    result[4] = 0
    break
  end
  first = last + 1
end

-- Nothing says that other balances could be read: the tenant as a whole is refused.
if put_off > 0 and readable == 0 then return refuse(refusal) end
result[6], result[7] = put_off, refusal or ''
return result
