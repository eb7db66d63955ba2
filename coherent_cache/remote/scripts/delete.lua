-- Delete values. KEYS[3..] values. Begins with the DEL, so that it works when memory is full (review A7b); what could
-- fail after it is what has been checked before it.

local existed = {}
for i = 3, #KEYS do
  existed[#existed + 1] = (live_seq(KEYS[i], epoch, seq, floor) or 1) > 0 and '1' or '0'
end
redis.call('DEL', unpack(KEYS, 3))
local err = advance()
if err then return err end
return {'ok', epoch, decimal(seq), unpack(existed)}
