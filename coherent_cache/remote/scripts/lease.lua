-- Ask for a value, and if there is none for the right to load it (rule P11). KEYS[3] value, KEYS[4] where a refresh is
-- claimed.
-- ARGV[2] 16 random bytes: epoch, and in their first half nonce, if a clock must be made; ARGV[3] milliseconds; ARGV[4]
-- and ARGV[5] what precedes the epoch and what follows the expiry in the lease's envelope; ARGV[6] seq of the value that
-- is to be refreshed, '' for a load; ARGV[7] '1' if bytes of another program count as absent; ARGV[8] the schema.
-- Answers {status, epoch, seq, floor, seconds, microseconds, value or '', milliseconds}: 'value' if there is one (not the
-- one that is to be refreshed), 'taken' if another lease lives, for so many milliseconds, 'leased', or 'foreign', with
-- the first two bytes as the value if that is an envelope of another format.

local clock = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'floor', 'config')
if clock[4] and clock[4] ~= ARGV[1] then return redis.error_reply('CCMISMATCH ' .. clock[4]) end
local epoch, seq, floor = clock[1], tonumber(clock[2] or 0), tonumber(clock[3] or 0)
local time = redis.call('TIME')

local function answer(status, value, milliseconds)
  return {status, epoch or '', decimal(seq), decimal(floor), time[1], time[2], value or '', milliseconds or '0'}
end

local version, codec = live(KEYS[3], epoch, seq, floor)
if not version then
  -- An envelope of a format that only newer releases know is never taken for absent: it is theirs.
  local head = redis.pcall('GETRANGE', KEYS[3], 0, 1)
  local newer = type(head) == 'string' and #head == 2 and string.byte(head) == 193 and string.byte(head, 2) ~= 1
  if newer then return answer('foreign', head) end
  if ARGV[7] ~= '1' then return answer('foreign') end
end
local place, value = 3, version and version > 0 and codec ~= 254 and redis.call('GET', KEYS[3])
if value then
  -- By the envelope's own expiry, as every reader judges it.
  local expires = tonumber(string.sub(value, 54, 69)) or 0
  if expires > 0 and expires <= tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) then value = false end
end
if value then
  if decimal(version) ~= ARGV[6] then return answer('value', value) end
  place = 4
elseif ARGV[6] ~= '' then
  return answer('taken')
end

-- Only a lease that ends by itself is one.
local left = redis.call('PTTL', KEYS[place])
if left > 0 and (place == 4 or codec == 254) then return answer('taken', '', decimal(left)) end

if not epoch then
  epoch, seq, floor = ARGV[2], 0, 0
  redis.call('DEL', KEYS[2])
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'seq', '0', 'nonce', string.sub(epoch, 1, 8), 'config', ARGV[1])
end
-- One above the clock: every floor that is raised from now on is at or above it, none raised before is.
local middle = epoch .. '\176' .. string.format('%016.0f', seq + 1) .. '\1760000000000000000'
redis.call('SET', KEYS[place], ARGV[4] .. middle .. ARGV[5], 'PX', ARGV[3])
return answer('leased')
