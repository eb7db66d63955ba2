-- For conditional writes of one key: ARGV[7] required epoch, empty for any; ARGV[8] required seq, 0 for absent, empty
-- for no condition.
-- Answers {'conflict', epoch, seq, current seq} or {'foreign', epoch, seq} if the condition does not hold.

if ARGV[8] ~= '' then
  local current = live_seq(KEYS[3], epoch, seq, floor)
  if not current then return {'foreign', epoch or '', decimal(seq)} end
  if decimal(current) ~= ARGV[8] or (ARGV[7] ~= '' and epoch ~= ARGV[7]) then
    return {'conflict', epoch or '', decimal(seq), decimal(current)}
  end
end
