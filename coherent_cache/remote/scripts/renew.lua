-- Give a lease that is still there more time, or end one that nobody waits for (rule P11). KEYS[1] its place; ARGV[1] what
-- follows the expiry in its envelope; ARGV[2] milliseconds, 0 to end it. Answers whether it was there.

local held = redis.pcall('GET', KEYS[1])
if type(held) ~= 'string' or string.byte(held, 17) ~= 254 or string.sub(held, 70) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
