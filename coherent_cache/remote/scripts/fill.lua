-- For the store of what was loaded (rule P11): ARGV[7] epoch of the lease; ARGV[8] seq of the value that is replaced, '0'
-- for none; ARGV[12] seq of the lease; ARGV[13] what follows the expiry in its envelope; ARGV[14..] tags, and last
-- the schema.
-- Answers {'void', epoch, seq} if the lease was lost: to a write, a deletion, a clear or a tag invalidation since it was
-- taken, to its time, or with the history. Nothing is stored then.

local current, codec = live(KEYS[3], epoch, seq, floor)
local held = current and epoch == ARGV[7]
if ARGV[8] == '0' then
  held = held and codec == 254 and string.sub(redis.call('GET', KEYS[3]), 70) == ARGV[13]
else
  held = held and codec ~= 254 and decimal(current) == ARGV[8]
end
for i = 14, #ARGV - 1 do
  held = held and tonumber(redis.call('HGET', KEYS[1], 't:' .. ARGV[i]) or 0) < tonumber(ARGV[12])
end
if not held then return {'void', epoch or '', decimal(seq)} end
