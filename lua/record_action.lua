-- Record an action of an operator: in the log, which is also how workers hear of it, and for pause and resume in the set
-- of halted tenants.
--
-- KEYS[1]  halted tenants (hash: schedule key of the tenant, who halted it as JSON)
-- KEYS[2]  actions and their outcomes (stream)
-- ARGV[1]  most entries in the stream, about
-- ARGV[2]  what: pause, resume, flush, refresh_credentials, drain, quarantine_retry, quarantine_drop
-- ARGV[3]  tenant ('' = none)
-- ARGV[4]  schedule key of the tenant ('' = none)
-- ARGV[5]  worker ('' = all that serve the tenant)
-- ARGV[6]  who
-- ARGV[7]  note ('' = none)
--
-- Result   { id, changed }
--          id       of the entry in the stream
--          changed  1 = the set of halted tenants is another one now
--
-- Atomic: a tenant is never halted without an entry that says by whom, and never the other way round.

local time = redis.call('TIME')
local changed = 0
if ARGV[2] == 'pause' then
  -- Who halted it first is who did.
  if redis.call('HEXISTS', KEYS[1], ARGV[4]) == 0 then
    local record = { tenant = ARGV[3], by = ARGV[6], at = tonumber(time[1]) + math.floor(tonumber(time[2]) / 1000) / 1000 }
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
