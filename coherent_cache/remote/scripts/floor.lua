-- Raise the floor of the shard, or of tags: ARGV[7..] tags, none for the shard (rule P10). KEYS[3] the probe key: the
-- DEL of nothing comes first, so that this works when memory is full (review A7b).

redis.call('DEL', KEYS[3])
local err = advance()
if err then return err end
if #ARGV == 6 then
  redis.call('HSET', KEYS[1], 'floor', decimal(seq))
else
  redis.call('HSET', KEYS[1], 'tag_seq', decimal(seq))
  for i = 7, #ARGV do redis.call('HSET', KEYS[1], 't:' .. ARGV[i], decimal(seq)) end
end
return {'ok', epoch, decimal(seq)}
