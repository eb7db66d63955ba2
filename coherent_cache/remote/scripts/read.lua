-- Read values with all that is needed to judge them (rule P2). KEYS[2..] values.
-- Answers {epoch or '', seq, floor, seconds, microseconds, values, tag floors}; no value is false, a value that is no
-- string is '' (of several, false). The tag floors are empty if all are 0.

local clock = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'floor', 'config')
if clock[4] and clock[4] ~= ARGV[1] then return redis.error_reply('CCMISMATCH ' .. clock[4]) end
local time = redis.call('TIME')
local values, tag_floors
local floors = {}
if #KEYS == 2 then
  local value = redis.pcall('GET', KEYS[2])
  if type(value) == 'table' then value = '' end
  values = {value}
else
  values = redis.call('MGET', unpack(KEYS, 2))
end
local byte = string.byte
for i = 1, #values do
  local value = values[i]
  -- 144: no tags.
  if value and byte(value, 70) ~= 144 and is_envelope(value) then
    if not tag_floors then
      tag_floors = {}
      for j = 1, #values do tag_floors[j] = 0 end
    end
    tag_floors[i] = tag_floor(value, floors)
  end
end
return {clock[1] or '', clock[2] or '0', clock[3] or '0', time[1], time[2], values, tag_floors or {}}
