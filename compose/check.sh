#!/usr/bin/env bash
# Start what compose.yaml and its variants have of this package from locally built images, wait until all is coherent, stop.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: compose/check.sh [--help]

Validates compose/compose.yaml as a whole. Then starts its Redis, workers, writer, tail and audit as a project of their
own, from the images of compose/build-redis-image.sh and compose/build-worker-image.sh, and waits until every worker's
health check says that it is coherent, serves local hits, applies invalidations and has seen no violation. Then Redis is
restarted, empty, and the same is waited for again, that tail still shows what is written, and that an audit has found
nothing outdated beyond the bound. Then the same with compose/compose.sentinel.yaml: there the master is killed, and what
is waited for is that all are coherent with the one that the sentinels have promoted. All of it is removed at the end.
Prometheus and Grafana are not started: their images are only in a registry.

Environment:
  COMPOSE_LIMIT   seconds to wait for the workers, and for the sentinels (default: 120)
  DOCKER_HOST     the engine (see compose/engine.sh for a private one)

Exit codes: 0 fine, 1 failed, 2 usage.
TEXT
}

fail() {
  printf 'compose/check: %s\n' "$*" >&2
  exit 1
}

case ${1:-} in
  -h | --help) usage; exit 0 ;;
  ?*) usage >&2; exit 2 ;;
esac

cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
limit=${COMPOSE_LIMIT:-120}
export REDIS_IMAGE=coherent-cache-redis:local WORKER_IMAGE=coherent-cache-worker:local
export COMPOSE_PROJECT_NAME=coherent-cache-check
workers=(worker-1 worker-2 worker-3)

if docker compose version >/dev/null 2>&1; then
  command=(docker compose)
elif command -v docker-compose >/dev/null; then
  command=(docker-compose) # the command of older distributions
else
  fail "no docker compose found; install it (Debian: apt-get install docker-compose, Ubuntu: docker-compose-v2)"
fi
files=(--file compose.yaml)
compose() { "${command[@]}" "${files[@]}" "$@"; }

# Waits until the health checks of all workers are content.
await_workers() {
  local deadline=$((SECONDS + limit)) containers states
  mapfile -t containers < <(compose ps -q "${workers[@]}")
  while :; do
    # A container stays "healthy" for some failures: what counts is that the last check did not fail.
    states=$(docker inspect --format '{{.State.Health.Status}}/{{.State.Health.FailingStreak}}' "${containers[@]}" | tr '\n' ' ')
    [[ $states != "healthy/0 healthy/0 healthy/0 " ]] || return 0
    ((SECONDS < deadline)) || fail "after $limit s the workers are: $states"
    sleep 1
  done
}

# The last report of each worker, and what tail has last shown.
show() {
  local service
  for service in "${workers[@]}" tail; do compose logs --no-color --tail 1 "$service" | grep "$service.*{"; done
}

# Starts the fleet, with the servers that are named.
start() {
  compose up --detach --no-build "$@" "${workers[@]}" writer tail audit >/dev/null 2>&1 || fail "compose up failed"
  await_workers
  show
}

# Finds all as it should be after Redis was lost.
check_recovery() {
  local tailed
  sleep 10 # longer than max_staleness: reports from before do not count
  await_workers
  tailed=$(compose logs --no-color tail | wc -l)
  sleep 2
  (($(compose logs --no-color tail | wc -l) > tailed)) || fail "tail shows nothing any more"
  compose exec -T audit python -c '
import urllib.request
text = urllib.request.urlopen("http://127.0.0.1:9793/metrics").read().decode()
assert "coherent_cache_audit_beyond_bound{cache_namespace=\"shop\"} 0.0" in text, text' || fail "the audit is not content"
  show
}

# Waits until all sentinels know each other and as many replicas as "$1" that copy the master, and name one master that
# is not "$2". Prints its address.
await_master() {
  compose exec -T worker-1 python -c '
import sys, time, redis
limit, replicas, lost = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
end = time.monotonic() + limit
while True:
    named, complete = set(), True
    for number in (1, 2, 3):
        with redis.Redis(host=f"sentinel-{number}", port=26379, socket_timeout=5) as sentinel:
            master = sentinel.sentinel_master("shop")
            copies = [each["master-link-status"] for each in sentinel.sentinel_slaves("shop")]
        named.add(master["ip"])
        complete &= master["num-other-sentinels"] == 2 and copies.count("ok") >= replicas
    if complete and len(named) == 1 and lost not in named:
        sys.exit(print(*named))
    if time.monotonic() > end:
        sys.exit(f"the sentinels name {named} and know {copies}")
    time.sleep(0.5)' "$limit" "$@" || fail "the sentinels do not agree on a master; the message is above"
}

cleanup() {
  local status=$?
  trap - EXIT INT TERM
  ((status == 0)) || compose logs --no-color --tail 20 >&2 || true
  compose down --volumes --timeout 10 >/dev/null 2>&1 || status=1
  exit "$status"
}

printf 'compose %s\n' "$("${command[@]}" version --short)"
compose config --quiet || fail "compose.yaml is not valid; the message is above"
for image in "$REDIS_IMAGE" "$WORKER_IMAGE"; do
  docker image inspect "$image" >/dev/null 2>&1 || fail "there is no image $image; the build scripts beside this one make it"
done

trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
start redis
compose restart --timeout 5 redis >/dev/null 2>&1 || fail "compose restart failed"
check_recovery
printf 'all workers are coherent, also after a restart of an empty Redis\n'
compose down --volumes --timeout 10 >/dev/null 2>&1 || fail "compose down failed"

files+=(--file compose.sentinel.yaml)
compose config --quiet || fail "compose.sentinel.yaml is not valid; the message is above"
start redis replica-{1,2} sentinel-{1,2,3}
first=$(await_master 2 "")
compose kill redis >/dev/null 2>&1 || fail "compose kill failed"
promoted=$(await_master 1 "$first")
check_recovery
printf 'all workers are coherent behind Sentinel, also after the master %s was killed and %s promoted\n' "$first" "$promoted"
