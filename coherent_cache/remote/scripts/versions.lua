-- Versions of values, for people who look on: reads headers, not values. KEYS[2..] values.
-- Answers {epoch or '', seq, floor, seconds, microseconds, {state, header, tag floor, PTTL} per value}; the state is
-- 0 for nothing there, 1 for an envelope, 2 for bytes of another program.

local clock = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'floor', 'config')
if clock[4] and clock[4] ~= ARGV[1] then return redis.error_reply('CCMISMATCH ' .. clock[4]) end
local time = redis.call('TIME')
local found, floors = {}, {}
for i = 2, #KEYS do
  local head = redis.pcall('GETRANGE', KEYS[i], 0, 69)
  if head == '' then
    found[i - 1] = {0, '', 0, 0}
  elseif type(head) ~= 'string' or not is_envelope(head) then
    found[i - 1] = {2, '', 0, redis.call('PTTL', KEYS[i])}
  else
    local floor = 0
    if string.byte(head, 70) ~= 144 then floor = tag_floor(redis.call('GET', KEYS[i]), floors) end
    found[i - 1] = {1, head, floor, redis.call('PTTL', KEYS[i])}
  end
end
return {clock[1] or '', clock[2] or '0', clock[3] or '0', time[1], time[2], found}
