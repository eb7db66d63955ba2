-- Store and delete values. KEYS[3..] values, first those to store, the last key the probe key. ARGV[7] how many to store;
-- ARGV[8..] milliseconds to live of each, '0' for ever, then of each what precedes the epoch and what follows the expiry
-- in its envelope; ARGV[#ARGV] the schema. Answers whether each value to delete was there.

local stores = tonumber(ARGV[7])
-- As delete.lua, if there is nothing to store. Else a full memory refuses the whole batch, before anything is done.
if stores == 0 then redis.call('DEL', KEYS[#KEYS]) end
local existed = {}
for i = stores + 3, #KEYS - 1 do
  existed[#existed + 1] = (live_seq(KEYS[i], epoch, seq, floor) or 1) > 0 and '1' or '0'
end
local err = advance()
if err then return err end
local ttl, middle
for i = 1, stores do
  if ARGV[7 + i] ~= ttl then
    ttl = ARGV[7 + i]
    middle = stamp(ttl)
  end
  local part = 6 + stores + 2 * i
  local envelope = ARGV[part] .. middle .. ARGV[part + 1]
  if ttl == '0' then
    redis.call('SET', KEYS[i + 2], envelope)
  else
    redis.call('SET', KEYS[i + 2], envelope, 'PX', ttl)
  end
end
if #existed > 0 then redis.call('DEL', unpack(KEYS, stores + 3, #KEYS - 1)) end
return {'ok', epoch, decimal(seq), unpack(existed)}
