-- Delete values. KEYS[3..] values, the last key the probe key: the DEL of nothing comes first, so that this works when
-- memory is full (review A7b); the values go last, so that none goes without a message.

redis.call('DEL', KEYS[#KEYS])
local existed = {}
for i = 3, #KEYS - 1 do
  existed[#existed + 1] = (live_seq(KEYS[i], epoch, seq, floor) or 1) > 0 and '1' or '0'
end
local err = advance()
if err then return err end
redis.call('DEL', unpack(KEYS, 3, #KEYS - 1))
return {'ok', epoch, decimal(seq), unpack(existed)}
