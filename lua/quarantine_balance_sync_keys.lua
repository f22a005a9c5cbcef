-- Quarantine: take members that can't be synced out of the schedule, each only while its score is still our
-- lease, and keep them in a hash of the tenant with the reason.
--
-- KEYS[1]  schedule
-- KEYS[2]  quarantine hash (field = member, value = JSON entry)
-- ARGV[1]  lock prefix ('' = mode `lease`)
-- ARGV[2]  lock token (mode `lock`)
-- ARGV[3]  most entries kept; a new member beyond that stays scheduled and is put off
-- ARGV[4]  how long such a member is put off, milliseconds
-- ARGV[5]  tenant prefix: only values whose key begins with it are touched ('' = single-tenant)
-- ARGV[6…] sixes: lease score, member, reason, detail, value ('' with has = 0), flags
--          flags: 'v' = a value is given, 't' = it was cut short, '-' = none
--
-- Result   { quarantined, kept, full }
--          quarantined  members moved into the hash (or whose entry was renewed)
--          kept         members with a newer mutation or a later claim: left as they are
--          full         members put off because the hash is full
--
-- Atomic: comparing, removing from the schedule, writing the entry. `first_at` and `count` of a member that was
-- quarantined before go on. Our lock goes unless a later claim holds the member. A value that the entry doesn't hold as a
-- whole must not expire: a retry reads its key. So that key is kept without end until the entry goes.

local lock_prefix, token, most, put_off_ms = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = string.format('%s.%06d', time[1], time[2])
local micros = tonumber(time[2]) + put_off_ms * 1000
local later = string.format('%d.%06d5', tonumber(time[1]) + math.floor(micros / 1000000), micros % 1000000)
local prefix = ARGV[5]
local quarantined, kept, full = 0, 0, 0
local entries = redis.call('HLEN', KEYS[2])

local function unlock(member)
  if lock_prefix == '' then return end
  local lock = lock_prefix .. member
  if redis.pcall('GET', lock) == token then redis.pcall('DEL', lock) end
end

local function own(member)
  if prefix == '' then return string.sub(member, 1, 7) ~= 'tenant:' end
  return string.sub(member, 1, #prefix) == prefix
end

for i = 6, #ARGV, 6 do
  local lease, member = ARGV[i], ARGV[i + 1]
  local score = redis.call('ZSCORE', KEYS[1], member)
  if score and tonumber(score) == tonumber(lease) then
    local before = redis.call('HGET', KEYS[2], member)
    if not before and entries >= most then
      redis.call('ZADD', KEYS[1], 'XX', later, member)
      full = full + 1
    else
      local entry = {
        reason = ARGV[i + 2], detail = ARGV[i + 3], first_at = now, last_at = now, count = 1,
        truncated = ARGV[i + 5] == 't',
      }
      if ARGV[i + 5] ~= '-' then entry.value = ARGV[i + 4] end
      if before then
        local ok, old = pcall(cjson.decode, before)
        if ok and type(old) == 'table' then
          if type(old.first_at) == 'string' then entry.first_at = old.first_at end
          entry.count = (tonumber(old.count) or 0) + 1
          entry.kept_alive = old.kept_alive == true or nil
          -- A value that has expired since must not push out the copy that was kept.
          if entry.value == nil and type(old.value) == 'string' then
            entry.value, entry.truncated = old.value, old.truncated == true
          end
        end
      else
        entries = entries + 1
      end
      if ARGV[i + 5] ~= 'v' and own(member) and redis.pcall('PERSIST', member) == 1 then entry.kept_alive = true end
      redis.call('HSET', KEYS[2], member, cjson.encode(entry))
      redis.call('ZREM', KEYS[1], member)
      quarantined = quarantined + 1
    end
    unlock(member)
  else
    kept = kept + 1
    -- A newer mutation is due for everybody; a later claim, perhaps our own, still needs its lock.
    if not score or tonumber(score) <= tonumber(now) then unlock(member) end
  end
end
return { quarantined, kept, full }
