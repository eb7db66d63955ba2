-- Put before every script. Plain Lua and redis.call only: no cmsgpack, no struct, no globals.
-- KEYS[1] clock, KEYS[2] log. ARGV[1] "<format>/<shards>" that the namespace must have.

-- Lua prints numbers with %.14g: ids, fields and messages need all digits.
local function decimal(n) return string.format('%.0f', n) end
