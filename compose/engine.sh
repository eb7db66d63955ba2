#!/usr/bin/env bash
# Start and stop a private Docker engine for the container tests, on a machine where none runs.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: compose/engine.sh start | stop | status | --help

  start    If a Docker engine answers already, says so and does nothing. Else starts dockerd with its own data, socket
           and log under one directory, waits until it answers, and prints the line to evaluate in the shell:
             engine=$(compose/engine.sh start) && eval "$engine"
  stop     Stops the private engine and its containers, waits until it is gone, and removes its directory.
  status   Says which engine answers.

The private engine stores plain directories (vfs), so that it needs no special file system, and changes no firewall
rule: containers get a published port on the host through docker's own proxy, and no way out to other networks.
It must run as root.

Environment:
  COHERENT_CACHE_ENGINE_DIR       the engine's directory (default: ${TMPDIR:-/tmp}/coherent-cache-engine)
  COHERENT_CACHE_ENGINE_TIMEOUT   seconds to wait for start and for stop (default: 60)

Exit codes: 0 fine, 1 failed (status: no engine answers), 2 usage.
TEXT
}

say() { printf 'engine: %s\n' "$*" >&2; }

fail() {
  say "$*"
  exit 1
}

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin # dockerd and ip are there, and not every user's PATH has them
dir=${COHERENT_CACHE_ENGINE_DIR:-${TMPDIR:-/tmp}/coherent-cache-engine}
limit=${COHERENT_CACHE_ENGINE_TIMEOUT:-60}
socket=$dir/docker.sock
bridge=docker0
longest_dir=60 # bytes; a unix socket path has at most 107, the engine adds its own file names

# The version of the engine at "$1", or of the default one. Fails if none answers.
engine_version() {
  local version
  version=$(timeout 20 docker ${1:+--host "$1"} info --format '{{.ServerVersion}}' 2>/dev/null) && [[ $version ]] &&
    printf '%s' "$version"
}

# Whether process "$1" runs. A dead one whose parent has not noticed yet does not count.
runs() { [[ -d /proc/$1 ]] && ! grep -q '^State:[[:space:]]*Z' "/proc/$1/status" 2>/dev/null; }

# Prints the id in pid file "$1" if that process runs and belongs to this directory: ids are used again.
own_pid() {
  local pid
  pid=$(cat "$1" 2>/dev/null) && [[ $pid =~ ^[0-9]+$ ]] && runs "$pid" &&
    tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF "$dir/" && printf '%s' "$pid"
}

# Waits until process "$1" is gone, at most "$2" seconds.
wait_gone() {
  local deadline=$((SECONDS + $2))
  while runs "$1"; do
    ((SECONDS < deadline)) || return 1
    sleep 0.1
  done
}

# Ends process "$1": asks, waits, then insists.
end_process() {
  kill -TERM "$1" 2>/dev/null || true
  wait_gone "$1" "$limit" && return
  say "process $1 did not end within $limit s, killing it"
  kill -KILL "$1" 2>/dev/null || true
  wait_gone "$1" 10
}

print_host() { printf 'export DOCKER_HOST=%q\n' "unix://$socket"; }

# Removes what the engine leaves: mounts, the network bridge if it was not there before, files.
remove_traces() {
  local target
  while read -r target; do
    umount "$target" 2>/dev/null || umount -l "$target" || true
  done < <(awk -v prefix="$dir/" 'index($2, prefix) == 1 { print $2 }' /proc/self/mounts | sort -r)
  if [[ -e $dir/made-bridge && -e /sys/class/net/$bridge ]]; then
    ip link delete "$bridge" 2>/dev/null || say "could not remove the network interface $bridge"
  fi
  rm -rf "$dir"
}

start() {
  local version pid
  command -v docker >/dev/null || fail "no docker command found; install it (Debian, Ubuntu: apt-get install docker.io)"
  if pid=$(own_pid "$dir/dockerd.pid") && version=$(engine_version "unix://$socket"); then
    say "the private engine $version runs already, process $pid"
    print_host
    return
  fi
  if version=$(engine_version ""); then
    say "a Docker engine $version answers already at ${DOCKER_HOST:-the default socket}; nothing to do"
    return
  fi
  command -v dockerd >/dev/null || fail "no dockerd found; install it (Debian, Ubuntu: apt-get install docker.io)"
  (($(id -u) == 0)) || fail "dockerd must run as root; use sudo, or start your own engine and set DOCKER_HOST"
  ((${#dir} <= longest_dir)) ||
    fail "the path '$dir' is too long for sockets in it; set COHERENT_CACHE_ENGINE_DIR to one of at most $longest_dir bytes"
  [[ ! -e $dir ]] || stop # remains of an engine that was killed

  (umask 077 && mkdir "$dir") || fail "cannot create $dir"
  [[ -e /sys/class/net/$bridge ]] || : >"$dir/made-bridge"
  # An own configuration file, even an empty one: flags that repeat a line of /etc/docker/daemon.json are an error.
  printf '{}\n' >"$dir/daemon.json"
  # A session of its own, so that the engine outlives this script and a Ctrl-C meant for the tests. No inherited file
  # may stay open, or a caller that reads our output would wait for the engine's end.
  setsid dockerd \
    --config-file "$dir/daemon.json" \
    --storage-driver vfs \
    --data-root "$dir/data" --exec-root "$dir/exec" --pidfile "$dir/dockerd.pid" \
    --host "unix://$socket" \
    --iptables=false --ip6tables=false --ip-masq=false --ip-forward=false \
    </dev/null >"$dir/log" 2>&1 &
  pid=$!
  local began=$SECONDS
  until version=$(engine_version "unix://$socket"); do
    if ! runs "$pid" || ((SECONDS - began >= limit)); then
      say "dockerd did not answer within $((SECONDS - began)) s; the end of its log:"
      tail -n 20 "$dir/log" >&2
      [[ -d /sys/fs/cgroup/memory || -e /sys/fs/cgroup/cgroup.controllers ]] ||
        say "no control groups are mounted under /sys/fs/cgroup; dockerd needs them (Debian, Ubuntu: cgroupfs-mount)"
      ! runs "$pid" || end_process "$pid" || true
      remove_traces
      exit 1
    fi
    sleep 0.1
  done
  say "private engine $version answers, process $pid, log $dir/log"
  print_host
}

stop() {
  local pid containers
  if [[ ! -e $dir ]]; then
    say "no private engine in $dir"
    return
  fi
  if pid=$(own_pid "$dir/dockerd.pid"); then
    if containers=$(timeout 20 docker --host "unix://$socket" ps -aq 2>/dev/null) && [[ $containers ]]; then
      # shellcheck disable=SC2086 # one word per container
      timeout 60 docker --host "unix://$socket" rm --force --volumes $containers >/dev/null || true
    fi
    end_process "$pid" || fail "dockerd, process $pid, does not end"
  fi
  # Only after dockerd was killed: a containerd that has lost its parent.
  if pid=$(own_pid "$dir/exec/containerd/containerd.pid"); then
    end_process "$pid" || fail "containerd, process $pid, does not end"
  fi
  remove_traces
  say "stopped, $dir removed"
}

status() {
  local version
  if version=$(engine_version ""); then
    printf 'Docker engine %s at %s\n' "$version" "${DOCKER_HOST:-the default socket}"
  elif version=$(engine_version "unix://$socket"); then
    printf 'private Docker engine %s at %s\n' "$version" "unix://$socket"
  else
    printf 'no Docker engine answers\n'
    return 1
  fi
}

case ${1:-} in
  start | stop | status) "$1" ;;
  -h | --help) usage ;;
  *)
    usage >&2
    exit 2
    ;;
esac
