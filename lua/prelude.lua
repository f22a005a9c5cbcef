-- Prelude: helpers shared by the scripts. `crates/schedule` puts it in front of each script before loading it, so a script
-- by itself is not complete.
--
-- Constants and functions only. No command runs, and nothing depends on KEYS or ARGV, until a script calls a function.

local PAGE = 1000 -- most members in one command: unpack() and Lua's C stack take about 8,000 values
local KEEP_ALIVE_SECONDS = 86400 -- TTL given back to a value that had none while its quarantine entry needed it
local LONGEST_VALUE = 1024 * 1024 -- bytes of a balance's value; the ledger's have about one thousandth of that
local LONGEST_MEMBER = 8192 -- bytes of a member; the ledger's have a few hundred
local MEMBERS_READ = 4 -- members read by one command: how long they are is known only then
local MEMBERS_SCANNED = 8 -- the same where Redis returns some more or less than that
local MEMBER_BYTES = 1024 * 1024 -- bytes of members after which no more are read in one call
local LONGEST_SESSION = 1024 -- bytes of the record of a session

-- What Redis refused, as it reported it; nil for any other answer of redis.pcall.
local function err_of(answer)
  return type(answer) == 'table' and answer.err or nil
end

-- Whether a refusal says that the user lacks a right: to a command, or to a key.
--   Redis 6.2       -NOPERM … can't run this command …          …access at least one of the keys…
--   Redis 7.0       The user executing the script can't run …   …can't access at least one of the keys…
--   from Redis 7.2  ACL failure in script: … no permissions to run the 'get' command   No permissions to access a key
local function is_denial(err)
  local function says(words) return string.find(err, words, 1, true) ~= nil end
  return says('NOPERM') or says('The user executing the script') or says('ACL failure in script')
end

-- The JSON object or array in this text; nil if there is none.
local function decode(text)
  local ok, object = pcall(cjson.decode, text)
  return ok and type(object) == 'table' and object or nil
end

-- Redis time.
--   now               seconds, as a number
--   text              seconds with six decimals, as producers write scores
--   seconds, micros   its parts
local function redis_time()
  local time = redis.call('TIME')
  return {
    now = tonumber(time[1]) + tonumber(time[2]) / 1000000,
    text = string.format('%s.%06d', time[1], time[2]),
    seconds = tonumber(time[1]),
    micros = tonumber(time[2]),
  }
end

-- The score `delay_ms` after that time (and some microseconds, if given), half-way between two microseconds. Producers write whole
-- microseconds, so a newer mutation never has such a score.
local function lease_score(time, delay_ms, more)
  local micros = time.micros + delay_ms * 1000 + (more or 0)
  return string.format('%d.%06d5', time.seconds + math.floor(micros / 1000000), micros % 1000000)
end

-- A score as `lease_score` gives it, or a few microseconds more, that no member of the schedule has: what has it afterwards is what
-- this call gives it to. Never `except`, which this call gives to others.
local function unused_score(schedule, time, delay_ms, except)
  local MOST = 100
  for more = 0, MOST do
    local score = lease_score(time, delay_ms, more)
    if score ~= except and (more >= MOST or redis.call('ZCOUNT', schedule, score, score) == 0) then return score end
  end
  return lease_score(time, delay_ms, MOST + 1)
end

-- Whether a score is that of a lease or a delay.
local function is_lease(score)
  return math.floor(score * 2000000 + 0.5) % 2 == 1
end

-- The score from which on no mutation is scheduled: its score is the time at which it was made. The clock of a replica that has become
-- the master may be somewhat behind.
local function unexplained_from(time)
  return string.format('(%.17g', time.now + 2)
end

-- A list of live workers (sorted set: name, time until which it counts as live): drops those whose time has passed.
local function drop_lapsed(list, now)
  redis.call('ZREMRANGEBYSCORE', list, '-inf', string.format('%.17g', now))
end

-- Counts a worker as live on such a list for so many milliseconds from now on.
local function list_as_live(list, name, now, life_ms)
  redis.call('ZADD', list, string.format('%.17g', now + life_ms / 1000), name)
end

-- Whether a key belongs to the tenant with this prefix. Single-tenant ('') means all keys but those that begin with 'tenant:'.
local function is_own(key, prefix)
  if prefix == '' then return string.sub(key, 1, 7) ~= 'tenant:' end
  return string.sub(key, 1, #prefix) == prefix
end

-- Whether a key lies in the slot of the schedule, as every key of the ledger does.
local function in_slot(key)
  return string.match(key, '{([^}]*)}') == 'transactions'
end

-- Reads a schedule by rank, from `first` on, a few members at a time: no command tells how long a member is without returning it.
-- Calls `handle(member, score)` for each, until `most` were read or `most_bytes` (> 0) are reached; one command reads at most four
-- members beyond that. Returns how many were handled, whether it stopped for their bytes, and the bytes.
local function read_members(schedule, first, most, most_bytes, handle)
  local handled, bytes, step = 0, 0, 1
  while handled < most and bytes < most_bytes do
    local from = first + handled
    local page = redis.call('ZRANGE', schedule, from, from + math.min(step, most - handled) - 1, 'WITHSCORES')
    if #page == 0 then return handled, false, bytes end
    for i = 1, #page, 2 do
      handle(page[i], page[i + 1])
      handled, bytes = handled + 1, bytes + #page[i]
    end
    -- One that is too long seldom comes alone.
    step = bytes > LONGEST_MEMBER * handled and 1 or math.min(2 * step, MEMBERS_READ)
  end
  return handled, handled < most, bytes
end

-- Scans a schedule as ZSCAN does, some `most` members from `cursor` on, a few at a time. Calls `handle(member, score)` for each.
-- Returns the cursor for the next page and how many were handled: fewer than `most` also when MEMBER_BYTES were reached.
local function scan_members(schedule, cursor, most, handle)
  local handled, bytes = 0, 0
  repeat
    local page = redis.call('ZSCAN', schedule, cursor, 'COUNT', math.min(MEMBERS_SCANNED, most - handled))
    cursor = page[1]
    for i = 1, #page[2], 2 do
      handle(page[2][i], page[2][i + 1])
      handled, bytes = handled + 1, bytes + #page[2][i]
    end
  until cursor == '0' or handled >= most or bytes >= MEMBER_BYTES
  return cursor, handled
end

-- What a member that is too long is called: its beginning, its length and a hash.
local function shortened(member)
  local SHOWN = 200 -- bytes of its beginning
  local ends = string.sub(member, 1, LONGEST_MEMBER) .. string.sub(member, -LONGEST_MEMBER) .. #member
  return string.format('%s… (%d bytes, %s)', string.sub(member, 1, SHOWN), #member, redis.sha1hex(ends))
end

-- The size of the value at a key if it is too large to be read; nil for any other value or type, and if there is none. The
-- second result is the refusal when the user may not ask for sizes.
local function too_large(key)
  local size = redis.pcall('STRLEN', key)
  if type(size) == 'number' then return size > LONGEST_VALUE and size or nil end
  local err = err_of(size)
  return nil, err and is_denial(err) and err or nil
end

-- Whether a key holds the token of a deletion marker instead of a value. The ledger gives it its TTL and waits for its end.
local function is_deletion_marker(key)
  if string.sub(key, -8) ~= ':deleted' or too_large(key) then return false end
  local text = redis.pcall('GET', key)
  return type(text) == 'string' and not string.find(text, '^%s*{')
end

-- Raises the remaining TTL of a value to the floor if it is shorter, but not that of a deletion marker. Returns
--   left      remaining TTL in milliseconds, after raising; -1 = no TTL, -2 = no key, nil = Redis refused to read it
--   raised    whether it was raised
--   refusal   what Redis refused, if anything; the caller's other keys are not affected
local function raise_ttl(key, floor_ms)
  local left = redis.pcall('PTTL', key)
  if err_of(left) then return nil, false, left.err end
  if left < 0 or left >= floor_ms or is_deletion_marker(key) then return left, false end
  local raised = redis.pcall('PEXPIRE', key, floor_ms)
  if err_of(raised) then return left, false, raised.err end
  return floor_ms, true
end

-- Ends what a quarantine entry did to keep the value of its member alive.
local function stop_keeping_alive(entry, member)
  if entry.kept_alive == true and redis.pcall('TTL', member) == -1 then
    redis.pcall('EXPIRE', member, KEEP_ALIVE_SECONDS)
  end
end

-- Mode `lock`: deletes the lock of a member if it carries our token. Does nothing in mode `lease` (lock prefix '').
local function unlock(lock_prefix, token, member)
  if lock_prefix == '' then return end
  local lock = lock_prefix .. member
  if redis.pcall('GET', lock) == token then redis.pcall('DEL', lock) end
end

-- Finds the members that are still under our lease. ARGV holds from `first` on groups of `size` arguments, each beginning
-- with lease score and member. Calls `handle(members, positions)` for each page of members whose score still is that lease
-- score; `positions` says where in ARGV the group of each begins. Unlocking those is left to `handle`.
-- Returns how many members have a newer mutation or a later claim.
local function for_leased(schedule, first, size, lock_prefix, token, handle)
  local now, kept = redis_time().now, 0
  for from = first, #ARGV, size * PAGE do
    local all, members, positions = {}, {}, {}
    for i = from, math.min(from + size * PAGE - 1, #ARGV), size do all[#all + 1] = ARGV[i + 1] end
    local scores = redis.call('ZMSCORE', schedule, unpack(all))
    for n = 1, #all do
      local i = from + size * (n - 1)
      -- As numbers: the text form of a double differs between Redis versions.
      if scores[n] and tonumber(scores[n]) == tonumber(ARGV[i]) then
        members[#members + 1], positions[#positions + 1] = all[n], i
      else
        kept = kept + 1
        -- A newer mutation must be claimable by every worker. A later claim, perhaps our own, still needs its lock.
        if not scores[n] or tonumber(scores[n]) <= now then unlock(lock_prefix, token, all[n]) end
      end
    end
    if #members > 0 then handle(members, positions) end
  end
  return kept
end

-- A session of the admin interface: when it was created (as text) and its record; nil if there is none that can be read.
local function read_session(sessions, session)
  local size = redis.call('HSTRLEN', sessions, session)
  if size == 0 or size > LONGEST_SESSION then return nil end
  return string.match(redis.call('HGET', sessions, session), '^(%d+%.%d+) (.*)$')
end

-- Whether a session has lapsed. ARGV[1] is the idle timeout and ARGV[2] the maximum age, both in milliseconds.
local function session_lapsed(created, used, now)
  return now >= used + tonumber(ARGV[1]) / 1000 or now >= tonumber(created) + tonumber(ARGV[2]) / 1000
end

-- Counts events of a schedule in the hash of events. What Redis refuses here must not keep members from being moved.
local function count_events(events, schedule, number)
  if number == 0 then return end
  local counted = redis.pcall('HGET', events, schedule)
  if not err_of(counted) then redis.pcall('HSET', events, schedule, (tonumber(counted) or 0) + number) end
end

-- Moves members that are still under our lease out of the schedule into a hash, one JSON entry each.
--   KEYS[1]  schedule
--   KEYS[2]  hash (field = member)
--   KEYS[3]  events (hash: field = schedule, value = how many this function has counted)
--   ARGV[1]  lock prefix, '' in mode `lease`
--   ARGV[2]  lock token
--   ARGV[3]  most entries in the hash; a new member beyond that stays scheduled and is postponed
--   ARGV[4]  for how long, milliseconds
--   ARGV     from `first` on: groups as in `for_leased`
-- `entry_of(position, member, before)` returns the new entry; `before` is the former one or nil. `first_at` and `count` are
-- carried on from it. Members that are new to the hash are counted as events, with `renewals` also those that were in it: an
-- acknowledgement of the entries holds until the next event. Returns how many were moved, are left to a newer mutation or a
-- later claim, and were postponed.
local function move_to_hash(first, size, renewals, entry_of)
  local lock_prefix, token, most = ARGV[1], ARGV[2], tonumber(ARGV[3])
  local time = redis_time()
  local later = unused_score(KEYS[1], time, tonumber(ARGV[4]))
  local entries = redis.call('HLEN', KEYS[2])
  local moved, full, events = 0, 0, 0
  local kept = for_leased(KEYS[1], first, size, lock_prefix, token, function(members, positions)
    for n, member in ipairs(members) do
      local raw = redis.call('HGET', KEYS[2], member)
      if not raw and entries >= most then
        redis.call('ZADD', KEYS[1], 'XX', later, member)
        full = full + 1
      else
        local before = raw and decode(raw) or nil
        local entry = entry_of(positions[n], member, before)
        entry.first_at, entry.last_at, entry.count = time.text, time.text, 1
        if before then
          if type(before.first_at) == 'string' then entry.first_at = before.first_at end
          entry.count = (tonumber(before.count) or 0) + 1
        end
        if not raw then entries = entries + 1 end
        if not raw or renewals then events = events + 1 end
        redis.call('HSET', KEYS[2], member, cjson.encode(entry))
        redis.call('ZREM', KEYS[1], member)
        moved = moved + 1
      end
      unlock(lock_prefix, token, member)
    end
  end)
  count_events(KEYS[3], KEYS[1], events)
  return { moved, kept, full }
end
