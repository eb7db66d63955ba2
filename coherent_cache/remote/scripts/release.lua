-- Give a lease up, log and publish it, so that whoever waits asks again (rule P11). KEYS[3] value; KEYS[4] the probe key:
-- the DEL of nothing comes first, so that this works when memory is full (review A7b). ARGV[7] what follows the expiry in
-- the lease's envelope. Answers {'void', epoch, seq} if the lease is not there any more.

local held = redis.pcall('GET', KEYS[3])
if type(held) ~= 'string' or string.byte(held, 17) ~= 254 or string.sub(held, 70) ~= ARGV[7] then
  return {'void', epoch or '', decimal(seq)}
end
redis.call('DEL', KEYS[4])
local err = advance()
if err then return err end
redis.call('DEL', KEYS[3])
return {'ok', epoch, decimal(seq)}
