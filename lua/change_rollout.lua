-- Change the rollout: which tenants are served, in the log of actions and in the history as well.
--
-- KEYS[1]  rollout (hash: revision, selection, by, at, note, change)
-- KEYS[2]  actions and their outcomes (stream)
-- KEYS[3]  history (hash: revision, JSON of the same)
-- ARGV[1]  approximate limit of entries in the stream
-- ARGV[2]  limit of entries in the history
-- ARGV[3]  the revision that the change was made of ('' = nothing was stored)
-- ARGV[4]  the selection ('' = that of the configuration)
-- ARGV[5]  the change, in words
-- ARGV[6]  operator
-- ARGV[7]  note ('' = none)
--
-- Result   { id, revision }
--          id        of the entry in the stream; '' = it was not changed, as another revision is stored
--          revision  that is stored now, as far as it is short
--
-- Atomic: all of it. Of two operators who change the same revision, one is told that it is no longer stored.

local stored = ''
if redis.call('HSTRLEN', KEYS[1], 'revision') <= 64 then
  stored = redis.call('HGET', KEYS[1], 'revision') or ''
end
if stored ~= ARGV[3] then return { '', stored } end
local revision = 1
if string.find(stored, '^%d+$') and #stored <= 15 then revision = tonumber(stored) + 1 end
local text = string.format('%d', revision)
local time = redis_time()
local at = string.format('%d.%03d', time.seconds, math.floor(time.micros / 1000))
redis.call('HSET', KEYS[1], 'revision', text, 'selection', ARGV[4], 'change', ARGV[5], 'by', ARGV[6], 'note', ARGV[7], 'at', at)
redis.call('HSET', KEYS[3], text,
  cjson.encode({ selection = ARGV[4], change = ARGV[5], by = ARGV[6], note = ARGV[7], at = at }))
redis.call('HDEL', KEYS[3], string.format('%d', revision - tonumber(ARGV[2])))
local id = redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[1], '*',
  'kind', 'action', 'what', 'rollout', 'tenant', '', 'key', '', 'worker', '', 'by', ARGV[6], 'note', ARGV[7],
  'change', ARGV[5], 'revision', text)
return { id, text }
