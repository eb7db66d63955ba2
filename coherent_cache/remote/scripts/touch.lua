-- Give a live value another time to live, under a new version. KEYS[3] value; ARGV[7] milliseconds, '0' for ever;
-- ARGV[8] the schema.

local current = live_seq(KEYS[3], epoch, seq, floor)
if not current then return {'foreign', epoch or '', decimal(seq)} end
if current == 0 then return {'absent', epoch or '', decimal(seq)} end
local err = advance()
if err then return err end
local value, ttl = redis.call('GET', KEYS[3]), ARGV[7]
value = string.sub(value, 1, 36) .. string.format('%016.0f', seq) .. '\176' .. expiry(ttl) .. string.sub(value, 70)
if ttl == '0' then
  redis.call('SET', KEYS[3], value)
else
  redis.call('SET', KEYS[3], value, 'PX', ttl)
end
return {'ok', epoch, decimal(seq)}
