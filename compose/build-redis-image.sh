#!/usr/bin/env bash
# Make a small container image of the redis-server installed on this machine, without any image registry.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: compose/build-redis-image.sh [--tag NAME] [--help]

Packs the installed redis-server, redis-cli if there is one, sh, and the shared libraries that ldd names into a container
image, with "docker import". No image registry is needed. The image has no other programs.

  --tag NAME   name of the image (default: coherent-cache-redis:local, which the integration tests look for)
  --help       this text

Environment:
  REDIS_SERVER   the redis-server to pack (default: the one on PATH)
  DOCKER_HOST    the engine that receives the image (see compose/engine.sh for a private one)

Run it like this. The server asks for no password, therefore publish its port on the loopback interface only:
  docker run --rm -p 127.0.0.1::6379 coherent-cache-redis:local

Exit codes: 0 built, 1 failed, 2 usage.
TEXT
}

fail() {
  printf 'build-redis-image: %s\n' "$*" >&2
  exit 1
}

tag=coherent-cache-redis:local
while (($#)); do
  case $1 in
    --tag) tag=${2:-}; shift 2 || { usage >&2; exit 2; } ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
done
[[ $tag ]] || { usage >&2; exit 2; }

[[ $(uname -s) == Linux ]] ||
  fail "the image is made of this machine's own Linux binaries, this is $(uname -s); use the official redis image instead"
server=${REDIS_SERVER:-$(command -v redis-server || true)}
[[ $server && -x $server ]] ||
  fail "no redis-server found; install it (Debian, Ubuntu: apt-get install redis-server) or set REDIS_SERVER to its path"
command -v docker >/dev/null ||
  fail "no docker command found; install it (Debian, Ubuntu: apt-get install docker.io)"
engine=$(docker info --format '{{.OSType}} {{.Architecture}}' 2>/dev/null) ||
  fail "no Docker engine answers at ${DOCKER_HOST:-the default socket}; start yours, or a private one with compose/engine.sh start"
[[ $engine == "linux $(uname -m)" ]] ||
  fail "the engine runs '$engine' but the binaries of this machine are 'linux $(uname -m)'; use the official redis image"

root=$(mktemp -d "${TMPDIR:-/tmp}/coherent-cache-image.XXXXXX")
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"

# A binary keeps its name: redis-server behaves as another tool when it is called by another tool's name.
install -D -m 755 "$server" "$root/usr/bin/redis-server"
packed=("$server" "$(command -v sh)") # the shell writes a sentinel's configuration
install -D -m 755 "${packed[1]}" "$root/usr/bin/sh"
if cli=$(command -v redis-cli); then
  install -D -m 755 "$cli" "$root/usr/bin/redis-cli"
  packed+=("$cli")
fi

# Every absolute path in ldd's answer is a library or the loader; a static binary has none. The paths stay as they are,
# because the loader finds the libraries by its default search path.
while read -r library; do
  install -D -m 755 "$library" "$root$library"
done < <({ ldd "${packed[@]}" 2>/dev/null || true; } | grep -oE '/[^ :()]+\.so[^ :()]*' | sort -u)

install -d -m 1777 "$root/tmp"
install -d -m 755 "$root/data" "$root/etc"
printf 'root:x:0:0:root:/data:/usr/bin/redis-server\n' >"$root/etc/passwd"
printf 'root:x:0:\n' >"$root/etc/group"

tar -C "$root" --numeric-owner --owner=0 --group=0 -c . |
  docker import --message "$("$server" --version | cut -d' ' -f1-3)" \
    --change 'ENV PATH=/usr/bin' \
    --change 'WORKDIR /data' \
    --change 'VOLUME /data' \
    --change 'EXPOSE 6379' \
    --change 'CMD ["redis-server", "--protected-mode", "no", "--dir", "/data"]' \
    - "$tag" >/dev/null ||
  fail "docker import refused the image; its message is above"

# The image is only good if the packed binary finds all its libraries in there.
version=$(docker run --rm --network none "$tag" redis-server --version) ||
  fail "the image was made, but redis-server does not start in it; its message is above"
printf 'built %s: %s\n' "$tag" "$version"
