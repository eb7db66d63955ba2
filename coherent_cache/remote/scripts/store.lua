-- Store values. KEYS[3..] values; ARGV[10] milliseconds to live, '0' for ever; ARGV[11..] the rest of each envelope.

local err = advance()
if err then return err end
local ttl = ARGV[10]
local head = '\193\001\152\196\016' .. epoch .. '\176' .. string.format('%016.0f', seq) .. '\176' .. expiry(ttl)
for i = 3, #KEYS do
  if ttl == '0' then
    redis.call('SET', KEYS[i], head .. ARGV[i + 8])
  else
    redis.call('SET', KEYS[i], head .. ARGV[i + 8], 'PX', ttl)
  end
end
return {'ok', epoch, decimal(seq)}
