-- Raise the floor of the shard, or of tags: ARGV[8..] tags, none for the shard (rule P10). KEYS[3] the probe key: the
-- DEL of nothing comes first, so that this works when memory is full (review A7b).

redis.call('DEL', KEYS[3])
local err = advance()
if err then return err end
if #ARGV == 7 then
  redis.call('HSET', KEYS[1], 'floor', decimal(seq))
else
  for i = 8, #ARGV do redis.call('HSET', KEYS[1], 't:' .. ARGV[i], decimal(seq)) end
end
return {'ok', epoch, decimal(seq)}
