-- Claim a name: hold one of several names with a lease, renew it, or give it up.
--
-- KEYS[…]  the names, the preferred one first (strings: incarnation of the holder, and how often it has claimed)
-- ARGV[1]  incarnation: new for each process
-- ARGV[2]  lease in milliseconds; 0 = give up the names that this incarnation holds
--
-- Result   { n, holder }
--          n       which of the names is held now, counted from 1; 0 = none: others hold all of them
--          holder  what the first name's key holds; it changes whenever the holder renews its lease
--
-- Atomic: looking at the holders, taking the first name that is free or held by this incarnation.

local lease_ms = tonumber(ARGV[2])
local first = ''
for i = 1, #KEYS do
  local value = redis.call('GET', KEYS[i])
  if i == 1 then first = value or '' end
  local holder, count = string.match(value or '', '^(%S+) (%d+)$')
  if lease_ms == 0 then
    if holder == ARGV[1] then redis.call('DEL', KEYS[i]) end
  elseif not value or holder == ARGV[1] then
    value = ARGV[1] .. ' ' .. string.format('%d', (tonumber(count) or 0) + 1)
    redis.call('SET', KEYS[i], value, 'PX', lease_ms)
    return { i, i == 1 and value or first }
  end
end
return { 0, first }
