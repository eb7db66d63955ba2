-- Who may hold local values of a shard (rule P12). KEYS[1] the registry that sync.lua keeps.
-- Answers {milliseconds now, field, value, ...}. Members that have not been seen for ten of the longest bounds and a
-- minute are gone for good, and forgotten.

local fields, time = redis.call('HGETALL', KEYS[1]), redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local longest = 0
for i = 2, #fields, 2 do
  longest = math.max(longest, tonumber(string.match(fields[i], '^(%d+):%d+$') or 0))
end
local answer = {string.format('%.0f', now)}
for i = 1, #fields, 2 do
  local seen = fields[i] ~= '' and string.match(fields[i + 1], '^%d+:(%d+)$')
  if seen and now - tonumber(seen) > 10 * longest + 60000 then
    redis.pcall('HDEL', KEYS[1], fields[i])
  else
    answer[#answer + 1] = fields[i]
    answer[#answer + 1] = fields[i + 1]
  end
end
return answer
