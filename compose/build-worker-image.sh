#!/usr/bin/env bash
# Make the workers' container image of the Python installed on this machine, without any image registry.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: compose/build-worker-image.sh [--tag NAME] [--help]

Packs the installed Python, its standard library, this package with what it needs (from a package index, by pip) and the
programs of compose/app into a container image, with "docker import". No image registry is needed. The image has no
shell. With a registry use compose/Dockerfile, which makes the same of an official image.

  --tag NAME   name of the image (default: coherent-cache-worker:local, which compose/compose.yaml looks for)
  --help       this text

Environment:
  PYTHON        the Python to pack, with pip (default: python3)
  DOCKER_HOST   the engine that receives the image (see compose/engine.sh for a private one)

Exit codes: 0 built, 1 failed, 2 usage.
TEXT
}

fail() {
  printf 'build-worker-image: %s\n' "$*" >&2
  exit 1
}

tag=coherent-cache-worker:local
while (($#)); do
  case $1 in
    --tag) tag=${2:-}; shift 2 || { usage >&2; exit 2; } ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
done
[[ $tag ]] || { usage >&2; exit 2; }

repository=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
[[ $(uname -s) == Linux ]] ||
  fail "the image is made of this machine's own Linux binaries, this is $(uname -s); use compose/Dockerfile instead"
python=$(command -v "${PYTHON:-python3}") || fail "no ${PYTHON:-python3} found; set PYTHON to a Python >= 3.11"
command -v docker >/dev/null ||
  fail "no docker command found; install it (Debian, Ubuntu: apt-get install docker.io)"
engine=$(docker info --format '{{.OSType}} {{.Architecture}}' 2>/dev/null) ||
  fail "no Docker engine answers at ${DOCKER_HOST:-the default socket}; start yours, or a private one with compose/engine.sh start"
[[ $engine == "linux $(uname -m)" ]] ||
  fail "the engine runs '$engine' but the binaries of this machine are 'linux $(uname -m)'; use compose/Dockerfile instead"

root=$(mktemp -d "${TMPDIR:-/tmp}/coherent-cache-image.XXXXXX")
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"

# Where the interpreter and its standard library are, also if a virtual environment's was named. All paths stay as they
# are, because the interpreter finds its library, and the loader the shared libraries, by their paths.
{
  read -r binary
  read -r stdlib
  read -r version
} < <("$python" -c '
import os, sys, sysconfig
base = getattr(sys, "_base_executable", None) or sys.executable
print(os.path.realpath(base), sysconfig.get_path("stdlib"), "%d.%d" % sys.version_info[:2], sep="\n")')
[[ -x $binary && -d $stdlib ]] || fail "cannot find the interpreter and the standard library of $python"

"$python" -m pip install --quiet --disable-pip-version-check --target "$root/opt/packages" "${repository}[cli,prometheus]" ||
  fail "pip could not install this package; its message is above"
install -D -m 755 "$binary" "$root$binary"
mkdir -p "$root$stdlib" "$root/opt/app" "$root/usr/bin"
tar -C "$stdlib" -c --exclude=__pycache__ --exclude='*.a' --exclude=./test --exclude=./tests --exclude=./idlelib \
  --exclude=./tkinter --exclude=./ensurepip --exclude=./lib2to3 --exclude=./turtledemo \
  --exclude='*/site-packages/*' --exclude='*/dist-packages/*' . | tar -C "$root$stdlib" -x
cp "$repository"/compose/app/*.py "$root/opt/app/"
for name in python python3; do
  [[ -e $root/usr/bin/$name ]] || ln -s "$binary" "$root/usr/bin/$name"
done

# Every absolute path in ldd's answer is a library or the loader.
while read -r library; do
  install -D -m 755 "$library" "$root$library"
done < <({ find "$root$stdlib" "$root/opt/packages" -name '*.so*' -print0 | xargs -0 ldd "$binary" 2>/dev/null || true; } |
  grep -oE '/[^ :()]+\.so[^ :()]*' | grep -vF "$root" | sort -u)

install -d -m 1777 "$root/tmp"
install -d -m 755 "$root/etc"
printf 'root:x:0:0:root:/:/usr/bin/python\nnobody:x:65534:65534:nobody:/:/usr/bin/python\n' >"$root/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"

tar -C "$root" --numeric-owner --owner=0 --group=0 -c . |
  docker import --message "Python $version and coherent-cache" \
    --change 'ENV PATH=/opt/packages/bin:/usr/bin' \
    --change 'ENV PYTHONPATH=/opt/packages' \
    --change 'ENV PYTHONDONTWRITEBYTECODE=1' \
    --change 'WORKDIR /opt/app' \
    --change 'USER nobody' \
    --change 'CMD ["python", "worker.py"]' \
    - "$tag" >/dev/null ||
  fail "docker import refused the image; its message is above"

# The image is only good if everything that the programs import is found in there.
docker run --rm --network none "$tag" python -c 'import ssl, worker, writer' ||
  fail "the image was made, but the programs cannot be imported in it; the message is above"
printf 'built %s: Python %s\n' "$tag" "$version"
