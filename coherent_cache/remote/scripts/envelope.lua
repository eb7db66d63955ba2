-- For scripts that judge stored values: the header that wire.py describes; offsets here count from 1.
-- ARGV[#ARGV] the asker's schema as two bytes, empty for 0; only for those that ask for live_seq.

local function is_envelope(s)
  return #s >= 70 and string.sub(s, 1, 5) == '\193\001\152\196\008'
end

-- Highest floor of the tags that an envelope names; 0 if none. `floors` remembers what was looked up.
local function tag_floor(s, floors)
  local head = string.byte(s, 70)
  local count, position = 0, 71
  if head >= 144 and head <= 159 then
    count = head - 144
  elseif head == 220 and #s >= 72 then
    count, position = string.byte(s, 71) * 256 + string.byte(s, 72), 73
  end
  local highest = 0
  for _ = 1, count do
    local mark, length = string.byte(s, position, position + 1)
    if mark ~= 217 or not length then return highest end
    local tag = string.sub(s, position + 2, position + 1 + length)
    local floor = floors[tag]
    if not floor then
      floor = tonumber(redis.call('HGET', KEYS[1], 't:' .. tag) or 0)
      floors[tag] = floor
    end
    if floor > highest then highest = floor end
    position = position + 2 + length
  end
  return highest
end

-- Schema of an envelope: bit 2 of its flags says that the last two bytes of the digest are its number.
local function schema_of(head)
  if math.floor(string.byte(head, 15) / 4) % 2 == 0 then return '' end
  return string.sub(head, 12, 13)
end

-- What lives under a key (rule P2): its seq and its codec; 0 if it is absent, dead or of another schema, nil if it is no
-- envelope. `epoch` is false if there is no clock: everything is dead then. Codec 254 is a lease, whose seq is one above
-- the clock that it was taken at (rule P11), 253 "no such thing". Reads the header alone where there are no tags.
local function live(key, epoch, seq, floor)
  local head = redis.pcall('GETRANGE', key, 0, 69)
  if head == '' then return 0 end
  if type(head) ~= 'string' or not is_envelope(head) then return nil end
  if schema_of(head) ~= ARGV[#ARGV] then return 0 end
  local version, codec = tonumber(string.sub(head, 37, 52)) or 0, string.byte(head, 17)
  local newest = codec == 254 and seq + 1 or seq
  if string.sub(head, 20, 35) ~= epoch or version > newest or version <= floor then return 0 end
  if string.byte(head, 70) ~= 144 and version <= tag_floor(redis.call('GET', key), {}) then return 0 end
  return version, codec
end

-- Version of the live value under a key: as `live`, but a lease and "no such thing" are no values.
local function live_seq(key, epoch, seq, floor)
  local version, codec = live(key, epoch, seq, floor)
  if codec == 253 or codec == 254 then return 0 end
  return version
end
