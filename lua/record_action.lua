-- Record an action of an operator in the log, which workers follow, for pause and resume also in the hash of paused
-- tenants, and for acknowledge in that of acknowledged entries.
--
-- KEYS[1]  paused tenants (hash: schedule key of the tenant, JSON record of who paused it and when)
-- KEYS[2]  actions and their outcomes (stream)
-- KEYS[3]  acknowledged entries (hash: schedule key of the tenant, JSON record of who acknowledged how many, and when)
-- KEYS[4]  events (hash, see `move_to_hash`)
-- KEYS[5…] for acknowledge: pairs of quarantine hash and losses, one per schedule of the tenant
-- ARGV[1]  approximate limit of entries in the stream
-- ARGV[2]  action: pause, resume, flush, refresh_credentials, acknowledge, drain, quarantine_retry, quarantine_drop, recover
-- ARGV[3]  tenant ('' = none)
-- ARGV[4]  schedule key of the tenant ('' = none)
-- ARGV[5]  worker ('' = all that serve the tenant)
-- ARGV[6]  operator
-- ARGV[7]  note ('' = none)
-- ARGV[8…] the schedules of the pairs
--
-- Result   { id, changed }
--          id       of the entry in the stream
--          changed  1 = the hash of paused tenants has changed, or entries were acknowledged
--
-- Atomic: all of it. No tenant is paused without an entry in the log, or the other way round. Entries are acknowledged as
-- they are counted here: an event after that is not covered.

local time = redis_time()
local changed, acknowledged = 0, ''
if ARGV[2] == 'pause' then
  -- The first pause stays on record.
  if redis.call('HEXISTS', KEYS[1], ARGV[4]) == 0 then
    local record = { tenant = ARGV[3], by = ARGV[6], at = time.seconds + math.floor(time.micros / 1000) / 1000 }
    if ARGV[7] ~= '' then record.note = ARGV[7] end
    redis.call('HSET', KEYS[1], ARGV[4], cjson.encode(record))
    changed = 1
  end
elseif ARGV[2] == 'resume' then
  changed = redis.call('HDEL', KEYS[1], ARGV[4])
elseif ARGV[2] == 'acknowledge' then
  local schedules, entries, losses, events = {}, 0, 0, 0
  for n = 8, #ARGV do
    local at = 5 + 2 * (n - 8)
    local quarantined, lost = redis.call('HLEN', KEYS[at]), redis.call('HLEN', KEYS[at + 1])
    schedules[#schedules + 1] = ARGV[n]
    entries, losses = entries + quarantined + lost, losses + lost
    events = events + (tonumber(redis.call('HGET', KEYS[4], ARGV[n])) or 0)
  end
  if entries > 0 then
    local record = {
      tenant = ARGV[3], by = ARGV[6], at = time.seconds + math.floor(time.micros / 1000) / 1000, schedules = schedules,
      entries = entries, losses = losses, events = events,
    }
    if ARGV[7] ~= '' then record.note = ARGV[7] end
    redis.call('HSET', KEYS[3], ARGV[4], cjson.encode(record))
    changed, acknowledged = 1, entries
  else
    redis.call('HDEL', KEYS[3], ARGV[4])
  end
end
local id = redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[1], '*',
  'kind', 'action', 'what', ARGV[2], 'tenant', ARGV[3], 'key', ARGV[4], 'worker', ARGV[5], 'by', ARGV[6], 'note', ARGV[7],
  'entries', acknowledged)
return { id, changed }
