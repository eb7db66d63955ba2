-- The clock of a shard, and its log from a position on: heartbeat and resync (rules P4, P6). KEYS[3] the probe key, KEYS[4]
-- the registry of members.
-- ARGV[2] token, ARGV[3] 16 random bytes: epoch, and in their first half nonce, if a clock must be made; ARGV[4]
-- position to replay from or '', ARGV[5] most messages to replay, ARGV[6] channel to publish the answer on, empty to
-- return it; ARGV[7] name of the member that asks, ARGV[8] milliseconds that it may serve what it has without asking.
-- The answer is the sync reply that wire.py describes, or an error.

local function bin(s)
  local n = #s
  return '\198' .. string.char(math.floor(n / 16777216), math.floor(n / 65536) % 256, math.floor(n / 256) % 256, n % 256) .. s
end

-- Deleting what is not there changes nothing, but only a primary that may write says yes (review A1, A31).
local status = ''
local probe = redis.pcall('DEL', KEYS[3])
if type(probe) == 'table' and probe.err then
  status = string.match(string.gsub(probe.err, '^@user_script: ?%d+: ', ''), '^-?(%u+)') or 'ERR'
end

local clock = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'nonce', 'config')
if clock[4] and clock[4] ~= ARGV[1] then return redis.error_reply('CCMISMATCH ' .. clock[4]) end
local epoch, seq, nonce = clock[1], tonumber(clock[2] or 0), clock[3]
if not epoch then
  epoch, seq, nonce = ARGV[3], 0, string.sub(ARGV[3], 1, 8)
  if status == '' then
    redis.call('DEL', KEYS[2])
    local made = redis.pcall('HSET', KEYS[1], 'epoch', epoch, 'seq', '0', 'nonce', nonce, 'config', ARGV[1])
    if type(made) == 'table' and made.err then return made end
  end
end

-- Whoever gets a proof of freshness is entered first (rule P12). A registry that is lost does no harm, one that lacks a
-- member would.
local time = redis.call('TIME')
if status == '' then
  local head = redis.pcall('HGET', KEYS[4], '')
  local now = decimal(tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
  local entered
  if type(head) == 'string' and string.sub(head, 1, 16) == epoch then
    entered = redis.pcall('HSET', KEYS[4], ARGV[7], ARGV[8] .. ':' .. now)
  else
    redis.call('DEL', KEYS[4])
    entered = redis.pcall('HSET', KEYS[4], '', epoch .. now, ARGV[7], ARGV[8] .. ':' .. now)
  end
  if type(entered) == 'table' then redis.call('DEL', KEYS[4]) end
end

-- In pieces, and not beyond a mebibyte: a replay that does not fit into the subscriber's output buffer would end its
-- connection, each time again. Entries that are missing make the asker flush.
local entries, bytes = {}, 0
if ARGV[4] ~= '' then
  local position, most = tonumber(ARGV[4]), tonumber(ARGV[5])
  if seq > position and seq - position <= most then
    repeat
      local log = redis.pcall('XRANGE', KEYS[2], decimal(position + #entries) .. '-0', '+', 'COUNT', '100')
      if log.err then break end
      for i = 1, #log do
        local message = log[i][2][2] or ''
        entries[#entries + 1], bytes = bin(message), bytes + #message
      end
    until #log < 100 or #entries > most or bytes > 1048576
    if bytes > 1048576 then entries = {} end
  end
end

local function text(s) return '\217' .. string.char(#s) .. s end
local count = #entries
local answer = '\001\152' .. bin(ARGV[2]) .. text(status) .. bin(epoch) .. text(decimal(seq)) .. bin(nonce)
  .. text(time[1]) .. text(time[2]) .. '\220' .. string.char(math.floor(count / 256), count % 256)
  .. table.concat(entries)
if ARGV[6] == '' then return answer end
redis.call('PUBLISH', ARGV[6], answer)
return 'OK'
