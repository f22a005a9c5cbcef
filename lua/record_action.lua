-- Record an action of an operator in the log, which workers follow, and for pause and resume also in the hash of paused
-- tenants.
--
-- KEYS[1]  paused tenants (hash: schedule key of the tenant, JSON record of who paused it and when)
-- KEYS[2]  actions and their outcomes (stream)
-- ARGV[1]  approximate limit of entries in the stream
-- ARGV[2]  action: pause, resume, flush, refresh_credentials, drain, quarantine_retry, quarantine_drop
-- ARGV[3]  tenant ('' = none)
-- ARGV[4]  schedule key of the tenant ('' = none)
-- ARGV[5]  worker ('' = all that serve the tenant)
-- ARGV[6]  operator
-- ARGV[7]  note ('' = none)
--
-- Result   { id, changed }
--          id       of the entry in the stream
--          changed  1 = the hash of paused tenants has changed
--
-- Atomic: writing both. No tenant is paused without an entry in the log, or the other way round.

local time = redis_time()
local changed = 0
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
end
local id = redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[1], '*',
  'kind', 'action', 'what', ARGV[2], 'tenant', ARGV[3], 'key', ARGV[4], 'worker', ARGV[5], 'by', ARGV[6], 'note', ARGV[7])
return { id, changed }
