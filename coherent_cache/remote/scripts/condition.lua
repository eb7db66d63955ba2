-- For conditional writes of one key: ARGV[7] required epoch, empty for absent; ARGV[8] required seq, empty for none.
-- Answers {'conflict', epoch, seq, current seq} or {'foreign', epoch, seq} if the condition does not hold.

if ARGV[8] ~= '' then
  local current = live_seq(KEYS[3], epoch, seq, floor)
  if not current then return {'foreign', epoch or '', decimal(seq)} end
  if decimal(current) ~= ARGV[8] or (current > 0 and epoch ~= ARGV[7]) then
    return {'conflict', epoch or '', decimal(seq), decimal(current)}
  end
end
