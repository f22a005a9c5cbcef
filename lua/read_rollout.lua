-- Read the rollout: which tenants are served, and since when.
--
-- KEYS[1]  rollout (hash: revision, selection, by, at, note, change)
-- ARGV[1]  most bytes of the selection
--
-- Result   { } = nothing is stored, or { size, revision, selection, at, by, note, change }
--          size  bytes of the selection; one that is too long is '' here. Texts are cut.
--
-- Atomic: all of it. Sizes are looked at before values are read.

-- Longest text of the others, in bytes.
local LONGEST = 4096

if redis.call('HLEN', KEYS[1]) == 0 then return {} end
local function field(name, longest)
  if redis.call('HSTRLEN', KEYS[1], name) > longest then return '' end
  return redis.call('HGET', KEYS[1], name) or ''
end
local size = redis.call('HSTRLEN', KEYS[1], 'selection')
return {
  size, field('revision', 64), field('selection', tonumber(ARGV[1])), field('at', 64), field('by', LONGEST),
  field('note', LONGEST), field('change', LONGEST),
}
