-- Record losses: take members whose value is gone out of the schedule, each only while its score is still our lease, and
-- keep in a hash of the tenant what is known of them. No write clears these entries: only an operator does, or a retry that
-- finds out that nothing was lost (see `remove_balance_sync_keys_batch.lua`).
--
-- KEYS[1]  schedule
-- KEYS[2]  losses (hash: field = member, value = JSON entry)
-- ARGV[1]  lock prefix ('' = mode `lease`)
-- ARGV[2]  lock token (mode `lock`)
-- ARGV[3]  most entries kept; a new member beyond that stays scheduled and is put off
-- ARGV[4]  how long such a member is put off, milliseconds
-- ARGV[5…] fours: lease score, member, confirmed ('1' or '0'), what is known (text, kept as it is)
--
-- Result   { recorded, kept, full } as of `quarantine_balance_sync_keys.lua`
--
-- Atomic: comparing, removing from the schedule, writing the entry. `first_at` and `count` of a member that was lost before
-- go on, and so does the mark of a later mutation. What was known for certain is not replaced by a guess.

local lock_prefix, token, most, put_off_ms = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = string.format('%s.%06d', time[1], time[2])
local micros = tonumber(time[2]) + put_off_ms * 1000
local later = string.format('%d.%06d5', tonumber(time[1]) + math.floor(micros / 1000000), micros % 1000000)
local recorded, kept, full = 0, 0, 0
local entries = redis.call('HLEN', KEYS[2])

local function unlock(member)
  if lock_prefix == '' then return end
  local lock = lock_prefix .. member
  if redis.pcall('GET', lock) == token then redis.pcall('DEL', lock) end
end

for i = 5, #ARGV, 4 do
  local lease, member = ARGV[i], ARGV[i + 1]
  local score = redis.call('ZSCORE', KEYS[1], member)
  if score and tonumber(score) == tonumber(lease) then
    local before = redis.call('HGET', KEYS[2], member)
    if not before and entries >= most then
      redis.call('ZADD', KEYS[1], 'XX', later, member)
      full = full + 1
    else
      local entry = { confirmed = ARGV[i + 2] == '1', loss = ARGV[i + 3], first_at = now, last_at = now, count = 1 }
      if before then
        local ok, old = pcall(cjson.decode, before)
        if ok and type(old) == 'table' then
          if type(old.first_at) == 'string' then entry.first_at = old.first_at end
          if type(old.later_at) == 'string' then entry.later_at = old.later_at end
          entry.count = (tonumber(old.count) or 0) + 1
          if old.confirmed == true and type(old.loss) == 'string' and not entry.confirmed then
            entry.confirmed, entry.loss = true, old.loss
          end
        end
      else
        entries = entries + 1
      end
      redis.call('HSET', KEYS[2], member, cjson.encode(entry))
      redis.call('ZREM', KEYS[1], member)
      recorded = recorded + 1
    end
    unlock(member)
  else
    kept = kept + 1
    -- A newer mutation is due for everybody; a later claim, perhaps our own, still needs its lock.
    if not score or tonumber(score) <= tonumber(now) then unlock(member) end
  end
end
return { recorded, kept, full }
