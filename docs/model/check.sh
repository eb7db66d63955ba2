#!/bin/bash
# check.sh            check the correct models, and that each variant with one rule removed yields a counterexample
# check.sh --quick    the same with smaller bounds for the correct models: for CI
# check.sh --story V  tell the shortest counterexample of variant V, as MODEL:V or V
#
# Needs spin (apt-get install spin), gcc and awk. Works in a folder of its own under TMPDIR and removes it. Exit status:
# 0 all as expected, 1 not, 2 something is missing. JOBS runs at a time (default 2); each run may take CPU_SECONDS of
# processor time (default 120) and 4 GB.
set -u
here=$(cd "$(dirname "$0")" && pwd)
export LC_ALL=C CPU_SECONDS=${CPU_SECONDS:-120}

# kind|model|name|rule|options of the model. "holds" must have no error, "breaks" must have one.
variants() { cat <<'END'
breaks|coherence|NO_TOKEN|P7|-DCHECK=4 -DWMAX=0 -DRMAX=1 -DDMAX=0
breaks|coherence|TOKEN_LATE|P7|-DCHECK=4 -DWMAX=0 -DRMAX=1 -DDMAX=0
breaks|coherence|SPLIT_INSERT|P7|-DCHECK=4 -DWMAX=0 -DRMAX=1 -DDMAX=0
breaks|coherence|NO_KNOWLEDGE|P7|-DCHECK=3 -DWMAX=1 -DRMAX=0 -DDMAX=0
breaks|coherence|OWN_MESSAGES_SKIPPED|P8|-DCHECK=4 -DWMAX=1 -DRMAX=0 -DDMAX=0
breaks|coherence|NO_GENERATION|P6|-DCHECK=4 -DWMAX=0 -DRMAX=1 -DDMAX=1
breaks|coherence|GENERATION_EARLY|P6|-DCHECK=4 -DWMAX=0 -DRMAX=1 -DDMAX=1
breaks|coherence|BLIND_RESYNC|P6|-DCHECK=4 -DWMAX=0 -DRMAX=1 -DDMAX=1
breaks|coherence|GAP_IGNORED|P6|-DCHECK=4 -DWMAX=0 -DRMAX=2 -DDMAX=0 -DSMAX=1 -DOTHER
breaks|coherence|PING_ONLY|P4|-DCHECK=4 -DWMAX=0 -DRMAX=1 -DDMAX=0 -DSMAX=1
breaks|coherence|HORIZON_AT_ANSWER|P4|-DCHECK=2 -DWMAX=0 -DRMAX=1 -DDMAX=0
breaks|coherence|LOOKUP_FIRST|P4|-DCHECK=2 -DWMAX=0 -DRMAX=1 -DDMAX=0
breaks|coherence|HORIZON_IGNORED|P5|-DCHECK=2 -DWMAX=0 -DRMAX=1 -DDMAX=0
breaks|coherence|EPOCH_IGNORED|P9|-DCHECK=3 -DWMAX=0 -DRMAX=2 -DDMAX=0 -DLMAX=1
breaks|coherence|REPLICA_READ|P14|-DCHECK=4 -DWMAX=0 -DRMAX=1 -DDMAX=0
breaks|failover|NO_NONCE|P6|-DW0=1 -DW1=1 -DWMAX=1
breaks|failover|KEEP_AHEAD|P6|-DW0=1 -DW1=1 -DWMAX=1
breaks|failover|NO_GENERATION|P6|-DW0=1 -DW1=1 -DWMAX=1
breaks|failover|NO_BINDING|P16|-DW0=1 -DW1=1 -DWMAX=1
breaks|failover|SEQ_BINDING|P16|-DW0=1 -DW1=1 -DWMAX=1
breaks|failover|BINDING_EARLY|P16|-DW0=1 -DW1=1 -DWMAX=1
breaks|failover|COMPARE_ANYWAY|P16|-DW0=1 -DW1=1 -DWMAX=1
breaks|acknowledged|NO_WAIT|P12|-DWMAX=1 -DDMAX=0
breaks|acknowledged|ANSWER_BEFORE_APPLY|P12|-DWMAX=2 -DDMAX=0
breaks|acknowledged|WAIT_FROM_SEND|P12|-DWMAX=1 -DDMAX=0
breaks|acknowledged|RECEIVERS_ONLY|P12|-DWMAX=2 -DDMAX=1
breaks|acknowledged|YOUNG_EPOCH|P12|-DWMAX=1 -DDMAX=0 -DLMAX=1
breaks|acknowledged|NO_DRIFT_MARGIN|P12|-DWMAX=1 -DDMAX=0
breaks|acknowledged|HORIZON_AT_ANSWER|P4|-DWMAX=1 -DDMAX=0
breaks|acknowledged|PING_ONLY|P4|-DWMAX=1 -DDMAX=0 -DSMAX=1
breaks|acknowledged|CLOCK_STOPS|P4|-DWMAX=1 -DDMAX=0
breaks|acknowledged|HORIZON_IGNORED|P5|-DWMAX=1 -DDMAX=0
breaks|acknowledged|GENERATION_EARLY|P6|-DWMAX=1 -DDMAX=1
breaks|acknowledged|NO_TOKEN|P7|-DWMAX=2 -DDMAX=0
END
}
quick() { cat <<'END'
holds|coherence|APPLIED|-|-DCHECK=1 -DWMAX=1 -DRMAX=1 -DDMAX=1 -DSMAX=1
holds|coherence|BOUND|-|-DCHECK=2 -DWMAX=1 -DRMAX=1 -DDMAX=1 -DSMAX=1
holds|coherence|MONOTONE|-|-DCHECK=3 -DWMAX=1 -DRMAX=1 -DDMAX=1 -DSMAX=1
holds|coherence|CONVERGE|-|-DCHECK=4 -DWMAX=1 -DRMAX=1 -DDMAX=1 -DSMAX=1 -DLMAX=1
holds|failover|CONVERGE,OWN|-|-DW0=2 -DW1=2 -DWMAX=1
holds|acknowledged|ACKNOWLEDGED|-|-DWMAX=2 -DDMAX=1
END
}
full() { cat <<'END'
holds|coherence|MONOTONE|-|-DCHECK=3 -DNR=2 -DWMAX=1 -DRMAX=1 -DDMAX=1
holds|coherence|APPLIED|-|-DCHECK=1 -DNR=2 -DWMAX=1 -DRMAX=1 -DDMAX=1
holds|coherence|BOUND|-|-DCHECK=2 -DWMAX=1 -DRMAX=1 -DDMAX=1 -DSMAX=1 -DLMAX=1
holds|failover|CONVERGE,OWN|-|-DW0=3 -DW1=3 -DWMAX=1
holds|acknowledged|ACKNOWLEDGED|-|-DWMAX=2 -DDMAX=1 -DLMAX=1
holds|acknowledged|ACKNOWLEDGED|-|-DWMAX=2 -DDMAX=1 -DSMAX=1
holds|acknowledged|ACKNOWLEDGED|-|-DWMAX=1 -DRMAX=1 -DDMAX=1 -DSMAX=1
holds|coherence|CONVERGE|-|-DCHECK=4 -DNR=2 -DWMAX=1 -DRMAX=1 -DDMAX=1
holds|coherence|APPLIED|-|-DCHECK=1 -DWMAX=1 -DRMAX=2 -DDMAX=1 -DSMAX=1 -DOTHER
holds|coherence|MONOTONE|-|-DCHECK=3 -DWMAX=1 -DRMAX=2 -DDMAX=1 -DSMAX=1 -DOTHER
holds|coherence|CONVERGE|-|-DCHECK=4 -DWMAX=1 -DRMAX=2 -DDMAX=1 -DSMAX=1 -DOTHER
holds|coherence|APPLIED|-|-DCHECK=1 -DWMAX=1 -DRMAX=1 -DDMAX=1 -DSMAX=1 -DLMAX=1
holds|coherence|MONOTONE|-|-DCHECK=3 -DWMAX=1 -DRMAX=1 -DDMAX=1 -DSMAX=1 -DLMAX=1
holds|coherence|CONVERGE|-|-DCHECK=4 -DWMAX=1 -DRMAX=1 -DDMAX=1 -DSMAX=1 -DLMAX=1
holds|coherence|BOUND|-|-DCHECK=2 -DNR=2 -DWMAX=0 -DRMAX=1 -DDMAX=1
holds|failover|CONVERGE,OWN|-|-DNR=2 -DW0=2 -DW1=2 -DWMAX=0
END
}

# Check one line in a folder of its own; print "model|name|rule|verdict|states|steps|seconds|options".
one() {
  local kind model name rule options work cflags
  IFS='|' read -r kind model name rule options <<<"$1"
  work=$(mktemp -d "$SCRATCH/XXXXXX") && cd "$work" || return 1
  cp "$here/$model.pml" model.pml
  if [ "$kind" = breaks ]; then
    options="-D$name $options" cflags="-O0 -DBFS"          # breadth first: the shortest trail
  else
    cflags="-O2"
  fi
  local verdict=BROKEN states=- steps=- seconds=-
  # shellcheck disable=SC2086
  if spin -a $options model.pml >spin.out 2>&1 &&
    nice gcc $cflags -w -DSAFETY -DNOFAIR -DNOBOUNDCHECK -DVECTORSZ=1024 -DMEMLIM=4096 -o pan pan.c 2>cc.out; then
    local TIMEFORMAT=%U
    seconds=$( { time bash -c "ulimit -t $CPU_SECONDS; nice ./pan -m20000 -w22" >pan.out 2>&1; } 2>&1)
    states=$(awk '/states, stored/ {print $1; exit}' pan.out)
    if grep -q 'errors: 1' pan.out && grep -q 'assertion violated' pan.out; then
      verdict=counterexample
      steps=$(spin -t $options model.pml 2>/dev/null | grep -c 'MSC: ')
      [ -n "${STORY:-}" ] && spin -t $options model.pml 2>/dev/null | sed -n 's/.*MSC: /  /p'
    elif grep -q 'errors: 0' pan.out && ! grep -qE 'not completed|max search depth' pan.out; then
      verdict='no error'
    else
      verdict=unfinished
    fi
  fi
  [ -n "${STORY:-}" ] || echo "$model|$name|$rule|$verdict|${states:--}|$steps|$seconds|$options|$kind"
  cd / && rm -rf "$work"
}

for tool in spin gcc awk xargs; do
  command -v "$tool" >/dev/null || { echo "check.sh: $tool is missing" >&2; exit 2; }
done
if [ "${1:-}" = --one ]; then
  one "$2"
  exit
fi
SCRATCH=$(mktemp -d) || exit 2
export SCRATCH
trap 'rm -rf "$SCRATCH"' EXIT
trap 'exit 130' INT TERM
case "${1:-}" in
--story)
  found=$(variants | awk -F'|' -v v="${2:-}" '$3 == v || $2 ":" $3 == v')
  [ -n "$found" ] || { echo "check.sh: there is no variant '${2:-}'" >&2; exit 2; }
  while read -r line; do
    echo "$line" | awk -F'|' '{print $2 ": without " $4 " (" $3 ")"}'
    STORY=1 one "$line"
  done <<<"$found"
  exit
  ;;
--quick) list=$(quick; variants) ;;
'') list=$(full; variants) ;;
*) sed -n '2,8s/^# //p' "$here/check.sh" >&2; exit 2 ;;
esac

start=$SECONDS
tr '\n' '\0' <<<"$list" | xargs -0 -r -P "${JOBS:-2}" -I{} "$here/check.sh" --one {} >"$SCRATCH/results"
total=$(grep -c . <<<"$list")
{ echo "model|run|rule|result|states|events|cpu s|options"; sort -t'|' -k9,9r -k1,1 -k3,3 -k2,2 "$SCRATCH/results"; } |
  awk -F'|' '{printf "%-13s %-21s %-4s %-15s %9s %6s %7s  %s\n", $1, $2, $3, $4, $5, $6, $7, $8}'
good=$(awk -F'|' '($9 == "holds" && $4 == "no error") || ($9 == "breaks" && $4 == "counterexample")' "$SCRATCH/results" | wc -l)
echo "$good of $total as expected, in $((SECONDS - start)) s"
[ "$good" -eq "$total" ]
