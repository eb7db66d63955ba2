"""The interface of every test server, and what the owned kinds have in common: ports, restarts, readiness, leaks.

Every owned server keeps its port for life, over ``kill`` and ``restart``. The port lies outside the range from which
the kernel takes ports for outgoing connections: a client that reconnects in a loop to a free port of that range can be
given this very port as its own, and is then connected to itself.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import shlex
import socket
import unittest
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from integration.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

START_TIMEOUT = 30.0  # seconds until a started server must answer; loading its data is included
STOP_TIMEOUT = 10.0  # seconds until a stopped server must be gone
PROBE_TIMEOUT = 0.5  # seconds for one attempt to reach a server that starts
COMMAND_TIMEOUT = 5.0  # seconds for one command of a plain client
PORT_ATTEMPTS = 10  # another program may take a free port before the server does


class ServerError(RuntimeError):
    """A server cannot be had, does not start, or does not stop."""


class PortTaken(ServerError):
    """Another program took the chosen port first."""


class Unsupported(unittest.SkipTest):
    """This kind of server does not allow that; pytest skips the test that asked."""


class RedisServer(ABC):
    """A real Redis. ``with server:`` stops it at the end.

    Attributes:
        kind: "container", "process", "bundled" or "url".
        url: stays the same over ``kill`` and ``restart``.
        passed_over: why better kinds were not taken, one line each.
    """

    kind: str
    url: str
    passed_over: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def client(self, **options: Any) -> redis.Redis:
        """Return a plain client: bytes in and out, no retries. The caller closes it."""
        defaults: dict[str, Any] = {
            "decode_responses": False,
            "retry": Retry(NoBackoff(), 0),
            "socket_timeout": COMMAND_TIMEOUT,
            "socket_connect_timeout": COMMAND_TIMEOUT,
        }
        return redis.Redis.from_url(self.url, **(defaults | options))

    def info(self, section: str = "server") -> dict[str, Any]:
        """Return what the server says about itself."""
        with self.client() as client:
            return dict(client.info(section))

    @property
    def version(self) -> str:
        return str(self.info()["redis_version"])

    def describe(self) -> str:
        """Return one line for a person, without a password."""
        parts = urlsplit(self.url)
        place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        return "; ".join([f"{self.kind}, Redis {self.version} at {place}", *self.passed_over])

    @abstractmethod
    def flush(self) -> None:
        """Remove all data: of the whole server if it is owned, else of the URL's database."""

    @abstractmethod
    def pause(self) -> None:
        """Freeze the server: connections stay open and are even accepted, nothing answers."""

    @abstractmethod
    def resume(self) -> None:
        """Undo ``pause``. Does nothing to a server that is not paused."""

    @abstractmethod
    def kill(self) -> None:
        """End the server at once (SIGKILL), without a chance to save. ``restart`` brings it back."""

    @abstractmethod
    def stop(self) -> None:
        """End the server for good, and everything that belongs to it. May be called again.

        Raises:
            ServerError: it is not gone within ``STOP_TIMEOUT``.
        """

    @abstractmethod
    def restart(self, *, keep_data: bool) -> None:
        """End the server if it runs, and start it at the same URL. Returns once it answers.

        Args:
            keep_data: with True the data is as it was, with False the server is empty.

        Raises:
            ServerError: the data cannot be kept, because the server was killed and is not ``durable``.
        """

    @abstractmethod
    def gone(self) -> bool:
        """Whether no process and no container of this server is left, running or dead."""


class OwnedServer(RedisServer):
    """A server that the tests start and end.

    Args:
        config: lines of redis.conf, as ``{"maxmemory": "2mb", "client-output-buffer-limit": "pubsub 1mb 1mb 1"}``.
        durable: every write is on disk before it is answered, so that ``restart(keep_data=True)`` works after ``kill``.
    """

    def __init__(self, *, config: Mapping[str, str] | None = None, durable: bool = False) -> None:
        persistence = {"save": '""', "appendonly": "yes" if durable else "no", "appendfsync": "always"}
        self._config = persistence | dict(config or {})
        self._durable = durable
        self._owner = os.getpid()
        self.port = 0

    def start(self) -> Self:
        """Start it on a free port of the loopback interface, and return once it answers.

        Raises:
            ServerError: says what is missing, or why it did not start.
        """
        _LIVE.add(self)
        try:
            for _ in range(PORT_ATTEMPTS - 1):
                try:
                    return self._start_at(free_port())
                except PortTaken:
                    self._remove()
            return self._start_at(free_port())
        except BaseException:
            self.stop()
            raise

    def _start_at(self, port: int) -> Self:
        self.port = port
        self.url = f"redis://127.0.0.1:{port}/0"
        self._launch()
        self._await_answer()
        return self

    def flush(self) -> None:
        with self.client() as client:
            client.flushall()

    def restart(self, *, keep_data: bool) -> None:
        self.resume()
        if keep_data and not self._durable:
            if not self.running:
                raise ServerError("the server was killed before it could save; start it with durable=True")
            # Saves and ends in one step: no client can write in between.
            with self.client(socket_timeout=STOP_TIMEOUT) as client:
                client.shutdown(save=True)
            wait_until(lambda: not self.running, STOP_TIMEOUT, f"{self.kind} server ends after SHUTDOWN SAVE")
        else:
            self._terminate()
        if not keep_data:
            self._erase()
        self._launch()
        self._await_answer()

    def stop(self) -> None:
        self.resume()
        self._remove()
        if not self.gone():
            raise ServerError(f"the {self.kind} server at {self.url} is still there after stop()")
        _LIVE.discard(self)

    def _arguments(self) -> list[str]:
        """Return the configuration as arguments of ``redis-server``, which takes each word as one argument."""
        return [word for name, value in self._config.items() for word in (f"--{name}", *shlex.split(value))]

    def _await_answer(self) -> None:
        def answers() -> bool:
            self._check_started()
            try:
                with self.client(socket_timeout=PROBE_TIMEOUT, socket_connect_timeout=PROBE_TIMEOUT) as client:
                    return self._is_ours(client.info("server"))
            except redis.RedisError:  # not yet listening, loading its data
                return False

        try:
            wait_until(answers, START_TIMEOUT, f"{self.kind} server at {self.url} answers")
        except AssertionError as error:
            raise ServerError(f"{error}; its log:\n{self._log()}") from error

    def _check_started(self) -> None:
        """Raise if there is nothing left to wait for."""
        if self.running:
            return
        log = self._log()
        if "in use" in log:
            raise PortTaken(f"port {self.port} was taken by another program")
        raise ServerError(f"the {self.kind} server ended at once; its log:\n{log}")

    def _is_ours(self, info: Mapping[str, Any]) -> bool:  # another program may listen on the port
        return True

    @property
    @abstractmethod
    def running(self) -> bool:
        """Whether the server's process is there, paused or not."""

    @abstractmethod
    def _launch(self) -> None:
        """Start the process on ``port``, with the data that is there."""

    @abstractmethod
    def _terminate(self) -> None:
        """End the process in an orderly way; the data stays."""

    @abstractmethod
    def _erase(self) -> None:
        """Remove the data of an ended process."""

    @abstractmethod
    def _remove(self) -> None:
        """End the process if there is one and remove all that belongs to it."""

    @abstractmethod
    def _log(self) -> str:
        """Return the end of the server's log."""


def free_port() -> int:
    """Return a port of the loopback interface that nobody uses and the kernel gives to no outgoing connection."""
    try:
        low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    except FileNotFoundError:
        low, high = 49152, 65535  # the range of most systems without /proc
    ports = [*range(max(1024, low - 10_000), low), *range(high + 1, 65_536)] or [*range(10_240, 65_536)]
    while True:
        port = secrets.choice(ports)  # not random: a test plugin that seeds it would make all tests take the same port
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


_LIVE: set[OwnedServer] = set()


def live_servers() -> list[OwnedServer]:
    """Return the servers that were started and not stopped."""
    return list(_LIVE)


def _stop_left_over() -> None:
    for server in live_servers():
        if server._owner == os.getpid():  # a forked child does not end its parent's servers
            with contextlib.suppress(Exception):
                server.stop()


atexit.register(_stop_left_over)
