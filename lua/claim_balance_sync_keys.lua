-- Claim: lease due members of one tenant's schedule, in the schedule itself, and read their values.
--
-- KEYS[1]  schedule (sorted set: member = balance key, score = due time in seconds)
-- ARGV[1]  limit: most members to claim (>= 1)
-- ARGV[2]  claim TTL in milliseconds: the lease ends this long after now
-- ARGV[3]  protect floor in milliseconds: shorter remaining TTLs of claimed values are raised to it, as far as they are looked at
--          (0 = off)
-- ARGV[4]  tenant prefix: only values whose key begins with it are read ('' = single-tenant)
-- ARGV[5]  quarantine hash of the tenant: has the copy of the value of a retried member whose value has expired
-- ARGV[6]  lock prefix ('' = mode `lease`; otherwise mode `lock`: each member's lock is taken too)
-- ARGV[7]  lock token (mode `lock`)
-- ARGV[8]  scan limit (mode `lock`): most members examined in this call
-- ARGV[9]  offset (mode `lock`): how many due members to skip, as returned by a call that found only foreign locks
-- ARGV[10] delay in milliseconds of members whose values Redis refuses to return while it returns others
-- ARGV[11] most entries in the quarantine hash
-- ARGV[12] events (hash, see `move_to_hash`): a new entry is one
-- ARGV[13] look (mode `lease`): of how many claimed members at most it is looked whether the ledger's own worker has locked them
-- ARGV[14] prefix of those locks
--
-- Result   { now, lease, scheduled, resume, foreign, postponed, refusal, unlock, isolated, unlisted, locked,
--            member, former score, value | false | status, ... }
--          now        Redis time, seconds with six decimals
--          lease      the lease score of every member in this answer, and of no other member
--          scheduled  members in the schedule, due or not
--          resume     offset for the next call (0 = from the head)
--          foreign    members skipped because another worker holds their lock
--          postponed  members whose values Redis refuses to return: due again after ARGV[10]
--          refusal    the error reported for them; with none postponed, the error met when TTLs were raised; '' = no refusal
--          unlock     milliseconds until the first of the foreign locks ends, of those looked at first; -1 = not known
--          isolated   members longer than LONGEST_MEMBER that were moved into the quarantine hash, see below
--          unlisted   such members that were postponed, because the hash is full or can't be written
--          locked     milliseconds since the ledger's own worker took the newest of its locks that were looked at; -1 = it holds
--                     none of them, -2 = none was looked at. In mode `lock` all foreign locks are looked at
--          value      the string; false = there is none; a status reply with the reason when this balance alone can't be
--                     read: its key is of another type, lies outside the tenant's slot, or is no key of a balance and the
--                     user has no right to it; 'TOOLARGE <bytes>' for a value longer than LONGEST_VALUE
-- Error    the refusal, when Redis returns no value of the tenant: nothing is claimed, all scores are unchanged
--
-- Atomic: finding due members, moving each score to the end of the lease, reading the values.
-- A refusal that every balance of the tenant would meet (access rights, a moving slot, undeclared keys) is not a fault of
-- the balances. Access rights may cover some keys only: members without are postponed so that they don't hide the others.
-- Fewer members than the limit are returned when their values are large, to bound the time for which Redis is blocked, and the
-- memory of Redis and of the worker. Sizes are looked at before values are read.
-- No ledger writes a member longer than LONGEST_MEMBER. Such a member is neither locked nor returned: it would pass through every
-- script, listing and log line. It is moved into the quarantine hash under its beginning, its length and a hash, so it can be
-- listed and dropped, not retried. Its value is not touched. One call reads about MAX_BYTES of such members, at most four of
-- them at once, and leaves the rest to the next.
-- A mutation gives its value an hour or more. So of a large claim's values of fresh mutations the TTLs are looked at by sample, and
-- all of its page when one that was looked at is below the floor. All others are looked at: of older mutations, and of members with the score of a lease or a delay.
-- The copy in a quarantine entry is used only while nothing but the retry, and claims since, has scheduled the member: after
-- a newer mutation the copy is older than what was lost, and writing it would hide the loss.

local limit, scan_limit, offset = tonumber(ARGV[1]), tonumber(ARGV[8]), tonumber(ARGV[9])
local ttl_ms, floor_ms = tonumber(ARGV[2]), tonumber(ARGV[3])
local prefix, lock_prefix, token = ARGV[4], ARGV[6], ARGV[7]
local balances = prefix .. 'balance:{transactions}:' -- what keys of balances begin with
local MGET_KEYS = 100 -- values read by one command
local LOCKS_TIMED = 50 -- foreign locks whose end is read: as many as the ledger's worker takes at once
local MAX_BYTES = 4 * 1024 * 1024 -- of all members and values in one answer
local FRESH = 600 -- seconds since a mutation for which the TTL that its ledger gave the value counts as long …
local FRESH_FLOOR_MS = 3000000 -- … against floors up to this: every ledger gives an hour at least
local TTL_SAMPLE = 16 -- so many such values of a claim are looked at, and of those behind them one in so many
local LEDGERS_TOKEN = '1' -- what the ledger's own worker sets its locks to …
local LEDGERS_LOCK_MS = 600000 -- … and for how long

local find = string.find

local function contains(text, words)
  return find(text, words, 1, true) ~= nil
end

-- Whether the user has no right to the key, as opposed to the command.
local function is_denied_key(err)
  return is_denial(err) and contains(err, 'access')
end

-- Why there is no value at a key. Returns a description when the key is of another type; nil and the refusal when Redis
-- refuses to read it; nil when the key doesn't exist.
local function diagnose(key)
  local err = err_of(redis.pcall('GET', key))
  if not err then return nil end
  if not contains(err, 'WRONGTYPE') then return nil, err end
  local kind = redis.pcall('TYPE', key)
  return kind.ok and 'its key is of type ' .. kind.ok or err
end

local time = redis_time()
local lease = unused_score(KEYS[1], time, ttl_ms)
local later = nil

-- The score of members that are postponed.
local function postponed_score()
  later = later or unused_score(KEYS[1], time, tonumber(ARGV[10]), lease)
  return later
end

local members, formers = {}, {}
local overlong = {} -- members that are too long
local bytes = 0 -- of the members read, and later of the values
local resume, foreign, unlock_in = 0, 0, -1
local moved = 0 -- how many of the members have a new score already
local locked = -2

-- Notes that a lock was looked at, what it holds and for how much longer, if that is known.
local function note_lock(holder, left)
  locked = math.max(locked, -1)
  if holder ~= LEDGERS_TOKEN then return end
  local age = left >= 0 and math.max(0, LEDGERS_LOCK_MS - left) or 0
  if locked < 0 or age < locked then locked = age end
end

-- Deletes the locks that this call took for the members from this one on.
local function unlock_from(from)
  if lock_prefix == '' then return end
  for i = from, #members do redis.pcall('DEL', lock_prefix .. members[i]) end
end

-- Undoes everything, and returns the error.
local function refuse(err)
  for first = 1, moved, PAGE do
    local restored = {}
    for i = first, math.min(first + PAGE - 1, moved) do
      restored[#restored + 1] = formers[i]
      restored[#restored + 1] = members[i]
    end
    redis.call('ZADD', KEYS[1], 'XX', unpack(restored))
  end
  unlock_from(1)
  return redis.error_reply(err)
end

-- Due members and their scores from this rank on, a few at a time: no command tells how long a member is without returning it. One
-- that is too long seldom comes alone, so once there was one the next are read one by one.
local step, due_until = 1, tonumber(time.text)
local function read_due(at, most)
  if #overlong > 0 then step = 1 end
  local due = redis.call('ZRANGE', KEYS[1], at, at + math.min(most, step) - 1, 'WITHSCORES')
  step = math.min(2 * step, MEMBERS_READ)
  while #due > 0 and tonumber(due[#due]) > due_until do due[#due], due[#due - 1] = nil, nil end
  return due
end

-- Counts the bytes of a member. Returns whether it is too long, after noting it.
local function is_overlong(member)
  bytes = bytes + #member
  if #member <= LONGEST_MEMBER then return false end
  overlong[#overlong + 1] = member
  return true
end

if lock_prefix == '' then
  local at, count = 0, 0
  while count < limit and bytes < MAX_BYTES do
    local due = read_due(at, limit - count)
    if #due == 0 then break end
    for i = 1, #due, 2 do
      if not is_overlong(due[i]) then
        count = count + 1
        members[count], formers[count] = due[i], due[i + 1]
      end
    end
    at = at + #due / 2
  end
  for i = 1, math.min(#members, tonumber(ARGV[13])) do
    local lock = ARGV[14] .. members[i]
    local holder = redis.pcall('GET', lock)
    local left = holder == LEDGERS_TOKEN and redis.pcall('PTTL', lock)
    if not err_of(holder) then note_lock(holder, type(left) == 'number' and left or -1) end
  end
else
  local at, seen = offset, 0
  while #members < limit and bytes < MAX_BYTES do
    if seen >= scan_limit then
      -- The next call skips the members with foreign locks, or they would hide the others for ever. Those claimed now are
      -- not due then, and those that are too long have gone.
      resume = at - #members - #overlong
      break
    end
    local due = read_due(at, limit)
    if #due == 0 then
      if seen > 0 or at == 0 then break end
      at = 0 -- fewer members are due than at the last call: begin at the head
    end
    for i = 1, #due, 2 do
      seen, at = seen + 1, at + 1
      if not is_overlong(due[i]) then
        local lock = lock_prefix .. due[i]
        local taken = redis.pcall('SET', lock, token, 'NX', 'PX', ttl_ms)
        if err_of(taken) then return refuse(taken.err) end
        local holder = not taken and redis.pcall('GET', lock) or nil
        if holder == token then taken = redis.call('SET', lock, token, 'PX', ttl_ms) end
        if taken then
          note_lock()
          members[#members + 1] = due[i]
          formers[#formers + 1] = due[i + 1]
          if #members == limit then break end
        else
          foreign = foreign + 1
          local left = foreign <= LOCKS_TIMED and redis.pcall('PTTL', lock)
          left = type(left) == 'number' and left or -1
          if left >= 0 and (unlock_in < 0 or left < unlock_in) then unlock_in = left end
          -- Of one whose end was not read it isn't known since when it has been there.
          note_lock(foreign <= LOCKS_TIMED and holder or nil, left)
        end
      end
    end
  end
end

-- Moves the members that are too long out of the schedule. Returns how many were moved and how many postponed.
local function isolate()
  if #overlong == 0 then return 0, 0 end
  local isolated, unlisted, events = 0, 0, 0
  local entries = redis.pcall('HLEN', ARGV[5])
  for _, member in ipairs(overlong) do
    local field = shortened(member)
    local done = false
    if type(entries) == 'number' and entries < tonumber(ARGV[11]) then
      local entry = {
        reason = 'member_too_long', truncated = false, first_at = time.text, last_at = time.text, count = 1,
        detail = string.format('the member has %d bytes; allowed: at most %d', #member, LONGEST_MEMBER),
      }
      local added = redis.pcall('HSET', ARGV[5], field, cjson.encode(entry))
      done = type(added) == 'number'
      if done then entries, events = entries + added, events + added end
    end
    if done then
      redis.call('ZREM', KEYS[1], member)
      isolated = isolated + 1
    else
      redis.call('ZADD', KEYS[1], 'XX', postponed_score(), member)
      unlisted = unlisted + 1
    end
  end
  count_events(ARGV[12], KEYS[1], events)
  return isolated, unlisted
end

local refusal = nil
local short_seen = false -- whether a TTL was below the floor
local values_seen = 0 -- values that were protected, or passed over
local fresh_from = floor_ms <= FRESH_FLOOR_MS and time.now - FRESH or math.huge

-- Raises the TTL of a value.
local function raise(member)
  local _, raised, refused = raise_ttl(member, floor_ms)
  short_seen, refusal = short_seen or raised, refusal or refused
end

-- Raises the TTLs of the values of these members. The values of fresh mutations are new, so of them only some are looked at, and
-- the others when one that was looked at is short-lived. What has the score of a lease or a delay may be as old as it likes.
local function protect(with_value)
  local passed_over = {}
  for _, i in ipairs(with_value) do
    local former = tonumber(formers[i])
    values_seen = values_seen + 1
    if values_seen > TTL_SAMPLE and values_seen % TTL_SAMPLE ~= 0 and former > fresh_from and not is_lease(former) then
      passed_over[#passed_over + 1] = members[i]
    else
      raise(members[i])
    end
  end
  if not short_seen then return end
  for _, member in ipairs(passed_over) do raise(member) end
end

local result = { time.text, lease, redis.call('ZCARD', KEYS[1]), resume, foreign, 0, '', unlock_in, 0, 0, locked }
local readable, postponed = 0, 0
local ask_sizes = true -- until Redis refuses to return them
local first, filled = 1, #result
while first <= #members do
  local last = math.min(first + MGET_KEYS - 1, #members)
  local keys, at_key, large, asked = {}, {}, {}, 0
  local beyond
  for i = first, last do
    local member = members[i]
    local is_balance = find(member, balances, 1, true) == 1
    if is_balance or is_own(member, prefix) then
      local size = ask_sizes and redis.pcall('STRLEN', member) or 0
      if type(size) ~= 'number' then
        -- What else may be wrong shows when the value is read.
        local err = err_of(size) or ''
        if is_denial(err) and not is_denied_key(err) then ask_sizes, refusal = false, refusal or err end
        size = 0
      end
      if size > LONGEST_VALUE then
        large[i] = size
      else
        if bytes + size > MAX_BYTES and i > 1 then
          beyond, last = i, i - 1
          break
        end
        bytes = bytes + size
        if is_balance then
          asked = asked + 1
          keys[asked], at_key[i] = member, asked
        end
      end
    end
  end
  local values = {}
  if asked > 0 then values = redis.pcall('MGET', unpack(keys)) end
  if err_of(values) then
    values = {}
    for i = 1, asked do values[i] = redis.pcall('GET', keys[i]) end
  end

  -- Read the whole page before anything is changed.
  local scores, retried, with_value, given = {}, {}, {}, 0
  for i = first, last do
    local member, value, why, err = members[i], false, nil, nil
    if large[i] then
      -- No copy in the quarantine may take its place: the value is there, and may be newer.
      value = { ok = 'TOOLARGE ' .. large[i] }
    elseif at_key[i] then
      value = values[at_key[i]]
      err = type(value) ~= 'string' and err_of(value)
      if err then
        value = false
        if contains(err, 'WRONGTYPE') then why, err = diagnose(member) end
      end
    elseif is_own(member, prefix) then
      value = redis.pcall('GET', member)
      err = err_of(value)
      if err then
        value = false
        -- The ledger writes no such key, so the worker needs no right to it.
        if not in_slot(member) or contains(err, 'WRONGTYPE') or is_denied_key(err) then why, err = err, nil end
      end
    end
    if type(value) == 'string' then
      if not ask_sizes then
        bytes = bytes + #value
        if bytes > MAX_BYTES and i > 1 then
          beyond = i
          break
        end
      end
      with_value[#with_value + 1] = i
    elseif not value and is_own(member, prefix) and not err then
      local kept = redis.pcall('HGET', ARGV[5], member)
      if type(kept) == 'string' then
        local entry = decode(kept)
        local retry = entry and entry.retry
        if type(retry) == 'table' and type(entry.value) == 'string' and not entry.truncated then
          local former = tonumber(formers[i])
          if former == tonumber(retry[1]) or former == tonumber(retry[2]) then
            value = entry.value
            -- The score of the next claim: the former one after a release, this lease after it has expired.
            entry.retry = { formers[i], lease }
            retried[#retried + 1] = member
            retried[#retried + 1] = cjson.encode(entry)
          end
        end
      end
      if not value and not why and at_key[i] then why, err = diagnose(member) end
      if not value and why then value = { ok = why } end
    end
    if err then
      -- Only a denial may concern one key and not the next.
      if not is_denial(err) then return refuse(err) end
      refusal, postponed = refusal or err, postponed + 1
      scores[given + 1] = postponed_score()
    else
      if at_key[i] then readable = readable + 1 end
      scores[given + 1] = lease
      result[filled + 1], result[filled + 2], result[filled + 3] = member, formers[i], value
      filled = filled + 3
    end
    scores[given + 2] = member
    given = given + 2
  end

  if given > 0 then redis.call('ZADD', KEYS[1], 'XX', unpack(scores)) end
  moved = moved + given / 2
  if #retried > 0 then redis.pcall('HSET', ARGV[5], unpack(retried)) end
  if floor_ms > 0 then protect(with_value) end
  if beyond then
    -- The rest stays due and unlocked for the next call, which begins at the head.
    unlock_from(beyond)
    result[4] = 0
    break
  end
  first = last + 1
end

-- No balance could be read, so the refusal concerns the tenant as a whole.
if postponed > 0 and readable == 0 then return refuse(refusal) end
result[6], result[7] = postponed, refusal or ''
result[9], result[10] = isolate()
return result
