-- Common to all writes; put before each of them (rule P1).
-- ARGV[2] channel, ARGV[3] log length, ARGV[4] 16 random bytes: the epoch if one must be made, and their first half
-- the nonce; ARGV[5] and ARGV[6] what precedes and follows epoch, seq, nonces and time in the message. A message names
-- its predecessor by that one's nonce; that of the first is the epoch's first half, as sync.lua makes it.

local clock = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'floor', 'config', 'nonce')
local epoch, seq, floor = clock[1], tonumber(clock[2] or 0), tonumber(clock[3] or 0)
if clock[4] and clock[4] ~= ARGV[1] then return redis.error_reply('CCMISMATCH ' .. clock[4]) end
local time = redis.call('TIME')

-- Log first: it is only a help, and the clock must not move if nothing can be published. A log of another type or
-- from a history whose clock is gone is begun again; any other error (out of memory, read only) ends the script.
local function append(id, message)
  local reply = redis.pcall('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], id, 'm', message)
  if type(reply) == 'table' and reply.err then
    if not (string.find(reply.err, 'WRONGTYPE', 1, true) or string.find(reply.err, 'equal or smaller', 1, true)) then
      return reply
    end
    redis.call('DEL', KEYS[2])
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], id, 'm', message)
  end
  return nil
end

-- Bump seq, log and publish. Whatever is stored comes after it: a script that dies half-way over-invalidates.
local function advance()
  if not epoch then
    epoch, seq, floor = ARGV[4], 0, 0
    redis.call('DEL', KEYS[2])
  end
  seq = seq + 1
  local text, nonce = decimal(seq), string.sub(ARGV[4], 1, 8)
  local previous = clock[1] and clock[5] or string.sub(epoch, 1, 8)
  local message = ARGV[5] .. '\196\016' .. epoch .. '\217' .. string.char(#text) .. text .. '\196\008' .. nonce .. '\196\008' .. previous
    .. '\217' .. string.char(#time[1]) .. time[1] .. '\217' .. string.char(#time[2]) .. time[2] .. ARGV[6]
  local err = append(text .. '-0', message)
  if err then return err end
  if clock[1] then
    redis.call('HSET', KEYS[1], 'seq', text, 'nonce', nonce)
  else
    redis.call('HSET', KEYS[1], 'epoch', epoch, 'seq', text, 'nonce', nonce, 'config', ARGV[1])
  end
  redis.call('PUBLISH', ARGV[2], message)
  return nil
end

-- When a value stored now expires, as the envelope's 16 digits; 0 for never.
local function expiry(ttl)
  if ttl == '0' then return '0000000000000000' end
  local ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) + tonumber(ttl)
  local seconds = math.floor(ms / 1000)
  if seconds < 2147483648 then return string.format('%013d%03d', seconds, ms % 1000) end
  return string.format('%016.0f', ms)
end

-- What lies between the two parts of an envelope that the client brings: epoch, seq and expiry.
local function stamp(ttl)
  return epoch .. '\176' .. string.format(seq < 2147483648 and '%016d' or '%016.0f', seq) .. '\176' .. expiry(ttl)
end
