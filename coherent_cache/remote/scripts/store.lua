-- Store values. KEYS[3..] values; ARGV[9] milliseconds to live, '0' for ever; ARGV[10..] what precedes the epoch and
-- what follows the expiry in each envelope. With a condition, ARGV[#ARGV] the schema.

local err = advance()
if err then return err end
local ttl = ARGV[9]
local middle = stamp(ttl)
for i = 3, #KEYS do
  local envelope = ARGV[2 * i + 4] .. middle .. ARGV[2 * i + 5]
  if ttl == '0' then
    redis.call('SET', KEYS[i], envelope)
  else
    redis.call('SET', KEYS[i], envelope, 'PX', ttl)
  end
end
return {'ok', epoch, decimal(seq)}
