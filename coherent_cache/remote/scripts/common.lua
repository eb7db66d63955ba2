-- Put before every script. Plain Lua and redis.call only: no cmsgpack, no struct, no globals.
-- KEYS[1] clock, KEYS[2] log. ARGV[1] "<format>/<shards>" that the namespace must have.

-- Lua prints numbers with %.14g: ids, fields and messages need all digits. %d is the cheaper, but a long may have 32 bits.
local function decimal(n) return string.format(n < 2147483648 and '%d' or '%.0f', n) end
