#!/bin/bash
# check.sh                check the protocol's models, and that each variant with one rule switched off yields a counterexample
# check.sh --quick        the same with smaller bounds where the models must hold: for CI
# check.sh --only REGEX   with or after --quick: only runs whose "model:variant" matches, e.g. 'failover:' or ':NO_TOKEN$'
# check.sh --list         say what would be run, without running it
# check.sh --story V      tell the shortest counterexample of variant V, given as V or model:V
#
# Needs spin, gcc and awk. Works in a folder of its own under TMPDIR and removes it. Exit status: 0 every outcome is the
# expected one, 1 some is not, 2 it cannot run. Environment: JOBS runs at a time (default 2); MEMORY_MB that all of them may
# take together (default 3600); CPU_SECONDS of processor time that each may take (default 300).
set -u
here=$(cd "$(dirname "$0")" && pwd)
export LC_ALL=C JOBS=${JOBS:-2} MEMORY_MB=${MEMORY_MB:-3600} CPU_SECONDS=${CPU_SECONDS:-300}

# What is expected, model, variant (the rule's option; - for none), rule, property, bounds. Expected is "holds", "breaks", or
# "spare": a rule that others make up for within these bounds.
variants() { cat <<'END'
breaks|coherence|NO_TOKEN|P7|APPLIED|-DWMAX=0 -DRMAX=1 -DDMAX=0
breaks|coherence|NO_TOKEN|P7|CONVERGE|-DWMAX=0 -DRMAX=1 -DDMAX=0
breaks|coherence|TOKEN_LATE|P7|CONVERGE|-DWMAX=0 -DRMAX=1 -DDMAX=0
breaks|coherence|SPLIT_INSERT|P7|CONVERGE|-DWMAX=0 -DRMAX=1 -DDMAX=0
breaks|coherence|NO_KNOWLEDGE|P7|MONOTONE|-DWMAX=1 -DRMAX=0 -DDMAX=0
breaks|coherence|OWN_MESSAGES_SKIPPED|P8|CONVERGE|-DWMAX=1 -DRMAX=0 -DDMAX=0
breaks|coherence|NO_GENERATION|P6|APPLIED|-DWMAX=0 -DRMAX=1 -DDMAX=1
breaks|coherence|NO_GENERATION|P6|CONVERGE|-DWMAX=0 -DRMAX=1 -DDMAX=1
breaks|coherence|GENERATION_EARLY|P6|CONVERGE|-DWMAX=0 -DRMAX=1 -DDMAX=1
breaks|coherence|BLIND_RESYNC|P6|CONVERGE|-DWMAX=0 -DRMAX=1 -DDMAX=1
breaks|coherence|GAP_IGNORED|P6|CONVERGE|-DWMAX=0 -DRMAX=2 -DDMAX=0 -DSMAX=1 -DOTHER
breaks|coherence|PING_ONLY|P4|CONVERGE|-DWMAX=0 -DRMAX=1 -DDMAX=0 -DSMAX=1
breaks|coherence|HORIZON_AT_ANSWER|P4|BOUND|-DWMAX=0 -DRMAX=1 -DDMAX=0
breaks|coherence|LOOKUP_FIRST|P4|BOUND|-DWMAX=0 -DRMAX=1 -DDMAX=0
breaks|coherence|HORIZON_IGNORED|P5|BOUND|-DWMAX=0 -DRMAX=1 -DDMAX=0
breaks|coherence|EPOCH_IGNORED|P9|MONOTONE|-DWMAX=0 -DRMAX=2 -DDMAX=0 -DLMAX=1
breaks|coherence|REPLICA_READ|P14|CONVERGE|-DWMAX=0 -DRMAX=1 -DDMAX=0
breaks|failover|NO_NONCE|P6|CONVERGE|-DW0=1 -DW1=1 -DWMAX=1
breaks|failover|KEEP_AHEAD|P6|CONVERGE|-DW0=1 -DW1=1 -DWMAX=1
breaks|failover|NO_GENERATION|P6|CONVERGE|-DW0=1 -DW1=1 -DWMAX=1
breaks|failover|NUMBER_ALONE|P6|CONVERGE|-DFOLLOW -DOTHER -DW0=1 -DW1=2 -DWMAX=0
breaks|failover|NO_BINDING|P16|CONVERGE|-DW0=1 -DW1=1 -DWMAX=1
breaks|failover|SEQ_BINDING|P16|CONVERGE|-DW0=1 -DW1=1 -DWMAX=1
breaks|failover|BINDING_EARLY|P16|OWN_WRITE|-DW0=1 -DW1=1 -DWMAX=1
breaks|failover|COMPARE_ANYWAY|P16|OWN_WRITE|-DW0=1 -DW1=1 -DWMAX=1
breaks|acknowledged|NO_WAIT|P12|ACKNOWLEDGED|-DWMAX=1 -DDMAX=0
breaks|acknowledged|ANSWER_BEFORE_APPLY|P12|ACKNOWLEDGED|-DWMAX=2 -DDMAX=0
breaks|acknowledged|WAIT_FROM_SEND|P12|ACKNOWLEDGED|-DWMAX=1 -DDMAX=0
breaks|acknowledged|RECEIVERS_ONLY|P12|ACKNOWLEDGED|-DWMAX=2 -DDMAX=1
breaks|acknowledged|YOUNG_EPOCH|P12|ACKNOWLEDGED|-DWMAX=1 -DDMAX=0 -DLMAX=1
breaks|acknowledged|NO_DRIFT_MARGIN|P12|ACKNOWLEDGED|-DWMAX=1 -DDMAX=0
breaks|acknowledged|HORIZON_AT_ANSWER|P4|ACKNOWLEDGED|-DWMAX=1 -DDMAX=0
breaks|acknowledged|PING_ONLY|P4|ACKNOWLEDGED|-DWMAX=1 -DDMAX=0 -DSMAX=1
breaks|acknowledged|CLOCK_STOPS|P4|ACKNOWLEDGED|-DWMAX=1 -DDMAX=0
breaks|acknowledged|HORIZON_IGNORED|P5|ACKNOWLEDGED|-DWMAX=1 -DDMAX=0
breaks|acknowledged|GENERATION_EARLY|P6|ACKNOWLEDGED|-DWMAX=1 -DDMAX=1
breaks|acknowledged|NO_TOKEN|P7|ACKNOWLEDGED|-DWMAX=2 -DDMAX=0
END
}
# Longest first, so that the last ones to run are short.
quick() { cat <<'END'
holds|coherence|-|-|CONVERGE|-DWMAX=1 -DRMAX=1 -DDMAX=1 -DSMAX=1 -DLMAX=1
holds|acknowledged|-|-|ACKNOWLEDGED|-DWMAX=2 -DDMAX=1
holds|failover|-|-|BOTH|-DW0=2 -DW1=2 -DWMAX=1
holds|failover|-|-|CONVERGE|-DFOLLOW -DOTHER -DW0=1 -DW1=2 -DWMAX=0
holds|coherence|-|-|BOUND|-DWMAX=1 -DRMAX=1 -DDMAX=1 -DSMAX=1
holds|coherence|-|-|MONOTONE|-DWMAX=1 -DRMAX=1 -DDMAX=1 -DSMAX=1
holds|coherence|-|-|APPLIED|-DWMAX=1 -DRMAX=1 -DDMAX=1 -DSMAX=1
spare|coherence|INSERT_WHILE_DOUBTED|P5|CONVERGE|-DWMAX=1 -DRMAX=1 -DDMAX=1 -DSMAX=1
END
}
full() { cat <<'END'
holds|coherence|-|-|MONOTONE|-DNR=2 -DWMAX=1 -DRMAX=1 -DDMAX=1
holds|failover|-|-|BOTH|-DW0=3 -DW1=3 -DWMAX=1
holds|coherence|-|-|APPLIED|-DNR=2 -DWMAX=1 -DRMAX=1 -DDMAX=1
holds|coherence|-|-|BOUND|-DWMAX=1 -DRMAX=1 -DDMAX=1 -DSMAX=1 -DLMAX=1
holds|acknowledged|-|-|ACKNOWLEDGED|-DWMAX=2 -DDMAX=1 -DLMAX=1
holds|coherence|-|-|CONVERGE|-DNR=2 -DWMAX=1 -DRMAX=1 -DDMAX=1
holds|acknowledged|-|-|ACKNOWLEDGED|-DWMAX=1 -DRMAX=1 -DDMAX=1 -DSMAX=1
holds|coherence|-|-|MONOTONE|-DWMAX=1 -DRMAX=2 -DDMAX=1 -DSMAX=1 -DOTHER
holds|coherence|-|-|MONOTONE|-DWMAX=1 -DRMAX=1 -DDMAX=1 -DSMAX=1 -DLMAX=1
holds|coherence|-|-|APPLIED|-DWMAX=1 -DRMAX=2 -DDMAX=1 -DSMAX=1 -DOTHER
holds|coherence|-|-|CONVERGE|-DWMAX=1 -DRMAX=2 -DDMAX=1 -DSMAX=1 -DOTHER
holds|acknowledged|-|-|ACKNOWLEDGED|-DWMAX=2 -DDMAX=1 -DSMAX=1
holds|coherence|-|-|APPLIED|-DWMAX=1 -DRMAX=1 -DDMAX=1 -DSMAX=1 -DLMAX=1
holds|coherence|-|-|CONVERGE|-DWMAX=1 -DRMAX=1 -DDMAX=1 -DSMAX=1 -DLMAX=1
holds|failover|-|-|CONVERGE|-DFOLLOW -DOTHER -DW0=2 -DW1=2 -DWMAX=0
holds|failover|-|-|CONVERGE|-DFOLLOW -DW0=2 -DW1=2 -DWMAX=1
holds|failover|-|-|BOTH|-DNR=2 -DW0=2 -DW1=2 -DWMAX=0
holds|coherence|-|-|BOUND|-DNR=2 -DWMAX=0 -DRMAX=1 -DDMAX=1
spare|coherence|INSERT_WHILE_DOUBTED|P5|APPLIED|-DWMAX=1 -DRMAX=1 -DDMAX=1 -DSMAX=1
spare|coherence|INSERT_WHILE_DOUBTED|P5|BOUND|-DWMAX=1 -DRMAX=1 -DDMAX=1 -DSMAX=1
spare|coherence|INSERT_WHILE_DOUBTED|P5|MONOTONE|-DWMAX=1 -DRMAX=1 -DDMAX=1 -DSMAX=1
spare|coherence|INSERT_WHILE_DOUBTED|P5|CONVERGE|-DWMAX=1 -DRMAX=1 -DDMAX=1 -DSMAX=1
END
}

# Check one line in a folder of its own; print its columns, and last whether that was expected.
one() {
  local expected model variant rule property bounds options compiler work
  IFS='|' read -r expected model variant rule property bounds <<<"$1"
  work=$(mktemp -d "$SCRATCH/XXXXXX") && cd "$work" || return 1
  cp "$here/$model.pml" model.pml
  options="-DCHECK=$property $bounds"
  [ "$variant" = - ] || options="-D$variant $options"
  compiler=-O2
  [ "$expected" != breaks ] || compiler='-O0 -DBFS' # breadth first: the shortest counterexample
  local result='NOT COMPILED' good=no states=- depth=- seconds=-
  # shellcheck disable=SC2086
  if spin -a $options model.pml >spin.out 2>&1 &&
    nice gcc $compiler -w -DSAFETY -DNOFAIR -DNOBOUNDCHECK -DVECTORSZ=1024 -DMEMLIM=$((MEMORY_MB / JOBS)) -o pan pan.c; then
    local TIMEFORMAT=%U
    seconds=$( { time bash -c "ulimit -t $CPU_SECONDS; exec nice ./pan -m20000 -w22" >pan.out 2>&1; } 2>&1)
    states=$(awk '/states, stored/ {print $1; exit}' pan.out)
    depth=$(sed -n 's/.*depth reached \([0-9]*\),.*/\1/p' pan.out)
    if grep -q 'errors: 1' pan.out && grep -q 'assertion violated' pan.out; then
      result=counterexample
    elif grep -q 'errors: 0' pan.out && ! grep -qE 'not completed|max search depth' pan.out; then
      result='no error'
    else
      result=UNFINISHED
    fi
    case "$expected:$result" in holds:no* | spare:no* | breaks:counter*) good=yes ;; esac
  fi
  if [ -n "${STORY:-}" ]; then
    # shellcheck disable=SC2086
    [ "$result" != counterexample ] || spin -t $options model.pml | sed -n 's/.*MSC: /  /p'
  else
    echo "$model|$property|$variant|$rule|$result|${states:--}|${depth:--}|$seconds|${bounds//-D/}|$good"
  fi
  cd / && rm -rf "$work"
}

usage() {
  sed -n '2,6s/^# //p' "$here/check.sh" >&2
  exit 2
}
list=$(full; variants) only=. action=check
while [ $# -gt 0 ]; do
  case "$1" in
  --quick) list=$(quick; variants) ;;
  --only) only=${2:?}; shift ;;
  --list) action=list ;;
  --story) action=story only="(^|:)${2:?}\$"; shift ;;
  --one) one "$2"; exit ;;
  *) usage ;;
  esac
  shift
done
list=$(awk -F'|' -v only="$only" '$2 ":" $3 ~ only' <<<"$list")
[ -n "$list" ] || { echo "check.sh: nothing matches '$only'" >&2; exit 2; }
if [ $action = list ]; then
  awk -F'|' '{gsub("-D", "", $6); print $2, $5, $3, $4, $1, $6}' <<<"$list"
  exit
fi

for tool in spin gcc awk xargs; do
  command -v "$tool" >/dev/null || { echo "check.sh: $tool is missing" >&2; exit 2; }
done
SCRATCH=$(mktemp -d) || exit 2
export SCRATCH
trap 'rm -rf "$SCRATCH"' EXIT
trap 'exit 130' INT TERM
if [ $action = story ]; then
  while read -r line; do
    awk -F'|' '{print $2 ": without " $4 " (" $3 "), " $5 " breaks"}' <<<"$line"
    STORY=1 one "$line"
  done <<<"$list"
  exit
fi

start=$SECONDS
tr '\n' '\0' <<<"$list" | xargs -0 -r -P "$JOBS" -I{} "$here/check.sh" --one {} >"$SCRATCH/results"
{
  echo "model|property|without|rule|result|states|depth|cpu s|bounds"
  sort -t'|' -k1,1r -k3,3 -k2,2 -k9,9 "$SCRATCH/results"
} | awk -F'|' '{
  remark = $10 == "no" ? "  NOT AS EXPECTED" : ""
  printf "%-13s %-13s %-21s %-4s %-15s %9s %6s %7s  %s%s\n", $1, $2, $3, $4, $5, $6, $7, $8, $9, remark
}' | sed 's/ *$//'
total=$(grep -c . <<<"$list") good=$(grep -c '|yes$' "$SCRATCH/results")
echo "$good of $total as expected, in $((SECONDS - start)) s"
[ "$good" -eq "$total" ]
