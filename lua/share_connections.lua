-- Share connections: renew what a worker holds of the fleet's connections to Postgres servers, and hand out what is free.
--
-- KEYS[1]  connections (hash: `run` = process of Redis, `epoch`, `settled`, `workers` = `id beat;` each,
--          `s:<server>` = `id held wanted budget;` for each worker that holds or wants some)
-- ARGV[1]  id of this worker: new for each process, and after it was given up
-- ARGV[2]  number of this call, counted from 1
-- ARGV[3]  1 = it stays, 0 = it leaves, and has closed all its connections
-- ARGV[4]  an epoch that it has seen for longer than any connection lasts that was handed out before; '' = none
-- ARGV[5]  cursor of the search for servers that no worker needs any more; 0 = from the start
-- ARGV[6]  number of workers to be given up, then `id, beat` for each: they have not called since that beat for longer
--          than their connections last
-- ARGV[…]  after them `server, budget, kept, wanted` for each server: all that the fleet may hold there, what this worker
--          doesn't give up, what it could use
--
-- Result   { state, epoch, settled, cursor, { id, beat, ... }, { held, share, all, workers, ... } }
--          state    1 = renewed, 0 = this worker was given up: it holds nothing and needs a new id, 2 = a later call of it was
--                   here before, 3 = there are too many workers; only 1 changes what it holds
--          workers  all that are known, with the number of their last call
--          then, for each server in the order of the arguments: what this worker holds from now on, its share (less than it
--          holds: it is to close some), what all hold together, how many workers need connections there
--
-- Atomic: all of it. What all hold together never exceeds the least budget that one of them names, but for what they held
-- before that was lowered, or before Redis lost this hash. No clock decides about that: workers watch each other's beats. Redis
-- loses the hash, or some of it, by a new start or a failover only, which gives it another `run`: then nothing is handed out, and
-- workers state what they hold, until one has seen the new epoch for long enough.

local KEPT_MS = 604800000 -- a week: how long the hash outlives its last worker
local MOST_WORKERS = 256
local MOST_SERVERS = 4096
local LONGEST = 65536 -- bytes of a field
local SEARCHED = 16 -- fields that one call looks at for what is needed no more
local TURN_SECONDS = 15 -- with more workers than connections, each has its turn for so long

local id, beat, stays = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1'

local function field(name)
  if redis.call('HSTRLEN', KEYS[1], name) > LONGEST then return '' end
  return redis.call('HGET', KEYS[1], name) or ''
end

-- The process of Redis that answers; '' where it isn't told.
local function process()
  local info = redis.pcall('INFO', 'server')
  return type(info) == 'string' and string.match(info, 'run_id:(%x+)') or ''
end

local run, epoch, settled = process(), field('epoch'), field('settled') == '1'
if epoch == '' or field('run') ~= run then
  local time = redis_time()
  epoch, settled = string.format('%s:%s', string.sub(run, 1, 16), time.text), false
  redis.call('HSET', KEYS[1], 'run', run, 'epoch', epoch, 'settled', '0')
elseif not settled and ARGV[4] == epoch then
  settled = true
  redis.call('HSET', KEYS[1], 'settled', '1')
end

local order, beats = {}, {}
for other, last in string.gmatch(field('workers'), '(%S+) (%d+);') do
  if not beats[other] then order[#order + 1] = other end
  beats[other] = tonumber(last)
end
local given_up = tonumber(ARGV[6])
for i = 7, 6 + 2 * given_up, 2 do
  if ARGV[i] ~= id and beats[ARGV[i]] == tonumber(ARGV[i + 1]) then beats[ARGV[i]] = nil end
end

local state = 1
if beats[id] then
  if beat <= beats[id] then state = 2 end
elseif beat > 1 and settled then
  state = 0
elseif stays then
  local live = 0
  for _, other in ipairs(order) do live = live + (beats[other] and 1 or 0) end
  if live >= MOST_WORKERS then state = 3 else order[#order + 1] = id end
end
if state == 1 then beats[id] = stays and beat or nil end

local known, list = {}, {}
for _, other in ipairs(order) do
  if beats[other] then
    list[#list + 1] = string.format('%s %.0f;', other, beats[other])
    known[#known + 1] = other
    known[#known + 1] = string.format('%.0f', beats[other])
  end
end
redis.call('HSET', KEYS[1], 'workers', table.concat(list))

-- What live workers hold and want on a server.
local function entries_of(name)
  local entries = {}
  for other, held, wanted, budget in string.gmatch(field(name), '(%S+) (%d+) (%d+) (%d+);') do
    if beats[other] then
      entries[#entries + 1] =
        { id = other, held = tonumber(held), wanted = tonumber(wanted), budget = tonumber(budget) }
    end
  end
  return entries
end

local function store(name, entries)
  if #entries == 0 then return redis.call('HDEL', KEYS[1], name) end
  local text = {}
  for i, entry in ipairs(entries) do
    text[i] = string.format('%s %d %d %d;', entry.id, entry.held, entry.wanted, entry.budget)
  end
  redis.call('HSET', KEYS[1], name, table.concat(text))
end

-- The share of one of these entries: equal for all who can use it, and what some can't use goes to the others. The same whoever
-- calls, but for the turns where there is less than one for each.
local function share_of(own, entries, budget)
  local wanting = {}
  for _, entry in ipairs(entries) do
    if entry.wanted > 0 then wanting[#wanting + 1] = entry end
  end
  if #wanting > budget then
    table.sort(wanting, function(a, b) return a.id < b.id end)
    local first = math.floor(redis_time().now / TURN_SECONDS) % #wanting
    for n = 0, budget - 1 do
      if wanting[(first + n) % #wanting + 1] == own then return 1 end
    end
    return 0
  end
  table.sort(wanting, function(a, b)
    if a.wanted ~= b.wanted then return a.wanted < b.wanted end
    return a.id < b.id
  end)
  local left = budget
  for n, entry in ipairs(wanting) do
    local share = math.min(entry.wanted, math.floor(left / (#wanting - n + 1)))
    if entry == own then return share end
    left = left - share
  end
  return 0
end

local results = {}
for i = 7 + 2 * given_up, #ARGV, 4 do
  local name, kept, wanted = 's:' .. ARGV[i], tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
  local entries = entries_of(name)
  local held, share = 0, 0
  if state == 1 and stays then
    local own, at = nil, nil
    for n, entry in ipairs(entries) do
      if entry.id == id then own, at = entry, n end
    end
    -- Before the epoch is settled, what it states is more recent than what is stored.
    local before = settled and (own and own.held or 0) or kept
    own = own or { id = id }
    own.wanted, own.budget, own.held = wanted, tonumber(ARGV[i + 1]), 0
    if not at then entries[#entries + 1], at = own, #entries + 1 end
    local budget, others = own.budget, 0
    for _, entry in ipairs(entries) do
      budget = math.min(budget, entry.budget)
      others = others + entry.held
    end
    share = share_of(own, entries, budget)
    held = math.min(kept, before)
    if settled then held = math.max(held, math.min(share, budget - others)) end
    own.held = held
    if held == 0 and wanted == 0 then table.remove(entries, at) end
    if #entries == 1 and entries[1] == own and redis.call('HEXISTS', KEYS[1], name) == 0
      and redis.call('HLEN', KEYS[1]) >= MOST_SERVERS then
      -- Without a record of them none are handed out.
      entries, held, share = {}, 0, 0
    else
      store(name, entries)
    end
  end
  local all, workers = 0, 0
  for _, entry in ipairs(entries) do
    all = all + entry.held
    if entry.held > 0 or entry.wanted > 0 then workers = workers + 1 end
  end
  results[#results + 1] = held
  results[#results + 1] = share
  results[#results + 1] = all
  results[#results + 1] = workers
end

local page = redis.call('HSCAN', KEYS[1], ARGV[5], 'COUNT', SEARCHED)
for i = 1, #page[2], 2 do
  local name = page[2][i]
  if string.sub(name, 1, 2) == 's:' then
    local entries = entries_of(name)
    if #entries == 0 then redis.call('HDEL', KEYS[1], name) end
  end
end
redis.call('PEXPIRE', KEYS[1], KEPT_MS)
return { state, epoch, settled and 1 or 0, page[1], known, results }
