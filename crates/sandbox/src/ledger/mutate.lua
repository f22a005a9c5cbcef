-- Mutates balances as the ledger does: value and schedule in one atomic step.
--
-- KEYS    the schedules (as many as ARGV[2] says), then the balance key of each mutation, in order
-- ARGV[1] time to live of the values, in seconds
-- ARGV[2] number of schedules
-- then, for each mutation, three arguments:
--         number of its schedule, from 1; neighbours should share it, each run is one ZADD
--         the version it starts from
--         the new JSON, which holds that version + 1
-- result  for each mutation -1 if it was written, or else the version that stands there now: the
--         mutation started from another one and nothing of it was written
--
-- A balance may occur several times. The score is Redis's own time with all six digits of the
-- microseconds, as text: Lua itself turns a number into text of 14 significant digits only.

local ttl = ARGV[1]
local schedules = tonumber(ARGV[2])
local time = redis.call('TIME')
local score = string.format('%s.%06d', time[1], tonumber(time[2]))

local result = {}
local pairs_of = nil
local current = nil

-- As in a reader of values: UpperCamel counts if it is there, lowerCamel may be stale.
local function version_in(value)
  return string.match(value, '"Version":([%d.eE+-]+)') or string.match(value, '"version":"?([%d.eE+-]+)')
end

local function schedule()
  if pairs_of and #pairs_of > 0 then
    redis.call('ZADD', KEYS[current], unpack(pairs_of))
  end
  pairs_of = {}
end

for i = 1, #KEYS - schedules do
  local at = 2 + (i - 1) * 3
  local number = tonumber(ARGV[at + 1])
  local base = tonumber(ARGV[at + 2])
  local key = KEYS[schedules + i]
  local value = redis.call('GET', key)
  local version = value and tonumber(version_in(value))
  if version and version ~= base then
    result[i] = version
  else
    redis.call('SET', key, ARGV[at + 3], 'EX', ttl)
    -- Lua takes a few thousand arguments at once, no more.
    if number ~= current or #pairs_of >= 2000 then
      schedule()
      current = number
    end
    pairs_of[#pairs_of + 1] = score
    pairs_of[#pairs_of + 1] = key
    result[i] = -1
  end
end
schedule()
return result
