"""Faults on purpose, for the demo and for tests: cut an instance's subscriber, restart an embedded server.

Nothing in here is used by a cache. The clients are plain ones of redis-py, so that what is done to a cache is not done
with its own code.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from coherent_cache.errors import CacheUnavailable, ConfigError
from coherent_cache.keys import shard_names
from coherent_cache.remote import embedded
from coherent_cache.remote.embedded import EmbeddedServer, embedded_url

TIMEOUT: Final = 2.0
"""Seconds that one command may take."""

STOP_TIMEOUT: Final = 5.0
"""Seconds until a server that was asked to end must be gone."""

SCAN_COUNT: Final = 1000
"""Keys that one step of a scan looks at."""

_KEPT_OPTIONS: Final = ("port", "unixsocket", "unixsocketperm", "save", "appendonly", "dir", "logfile", "loglevel")
"""Options with which an embedded server was started, and is started again."""


def is_alive(url: str) -> bool:
    """Tell whether a server answers. One that is busy is alive."""
    try:
        with _client(url) as client:
            client.ping()
    except redis.TimeoutError:
        return True
    except redis.ConnectionError:
        return False
    return True


def cut_subscriber(url: str, instance_id: str) -> bool:
    """Let the server close the connection on which an instance receives invalidations; tell whether there was one.

    Args:
        url: where Redis is: ``redis://``, ``rediss://``, ``unix://`` or ``embedded://``.
        instance_id: the instance.

    Raises:
        CacheUnavailable: Redis is away, or allows no CLIENT LIST or CLIENT KILL.
        ConfigError: the URL is none of those.
    """
    name = f"coherent-cache:{instance_id}:subscriber"
    try:
        with _client(url) as client:
            found = [each["id"] for each in client.client_list() if each.get("name") == name]
            killed = [client.client_kill_filter(_id=identity) for identity in found]
            return any(killed)
    except redis.RedisError as error:
        raise CacheUnavailable(f"the subscriber of {instance_id} cannot be cut: {error}") from error


@contextmanager
def embedded_outage(name: str = "default") -> Iterator[None]:
    """End the embedded server called ``name`` for the length of a ``with`` block.

    Then it is started again: empty, on the same socket, and to live as long as the old one would have. After an
    exception it stays away. Only for the process that started it; its other threads wait where they use the name.

    Raises:
        CacheUnavailable: it does not end, or does not start again.
        ConfigError: the server is fakeredis', or another process': those cannot be restarted.
    """
    with embedded._lock:  # noqa: SLF001
        server = embedded_url(name)
        use = embedded._in_use[name]  # noqa: SLF001
        if not isinstance(use, embedded._ProcessUse) or use.owner != os.getpid():  # noqa: SLF001
            raise ConfigError("url", f"embedded://{name} ({server.kind}) was not started by this process as a process")
        command = _shut_down(server)
        yield
        restarted = _Restarted.start(command, use)
        embedded._in_use[name] = restarted  # noqa: SLF001
        fields = asdict(restarted.server) | {"owner": restarted.owner}
        os.environ[embedded._variable(name)] = json.dumps(fields)  # noqa: SLF001


def restart_embedded(name: str = "default") -> EmbeddedServer:
    """End the embedded server called ``name`` and start it again at once; see :func:`embedded_outage`."""
    with embedded_outage(name):
        pass
    return embedded_url(name)


def remove_namespace(url: str, namespace: str) -> int:
    """Delete all that a namespace has in Redis, its history too; return how many keys that were.

    Only for a namespace that nobody uses any longer and nobody will use again.

    Raises:
        CacheUnavailable: Redis is away.
        ConfigError: the URL cannot be used.
    """
    of_shard_0 = shard_names(namespace, 0, 0).clock
    pattern = of_shard_0.replace(b"/0}:clock", b"/*}:*")  # no character of a namespace has a meaning in a pattern
    try:
        with _client(url) as client:
            keys = list(client.scan_iter(match=pattern, count=SCAN_COUNT))
            return sum(client.unlink(key) for key in keys)
    except redis.RedisError as error:
        raise CacheUnavailable(f"the keys of namespace {namespace!r} cannot be removed: {error}") from error


class _Restarted(embedded._ProcessUse):  # noqa: SLF001
    """A server that took over another one's socket. The first one's supervisor still stands by to clear the folder."""

    before: embedded._ProcessUse

    @classmethod
    def start(cls, command: list[str], before: embedded._ProcessUse) -> _Restarted:
        server = before.server
        folder = Path(unquote(urlsplit(server.url).path)).parent
        shell, lifeline = embedded._launch(folder, command)  # noqa: SLF001
        with shell:
            try:
                info = embedded._await_answer(server.url, shell, f"the {server.kind}", folder / "redis.log")  # noqa: SLF001
            except BaseException:
                lifeline.cut()
                raise
        now = EmbeddedServer(server.url, server.kind, str(info["redis_version"]), int(info["process_id"]))
        restarted = cls(now, folder, lifeline)
        restarted.before = before
        return restarted

    def end(self) -> None:
        super().end()
        self.before.end()

    def leave(self) -> None:
        super().leave()
        self.before.leave()


def _shut_down(server: EmbeddedServer) -> list[str]:
    """End a server; return the command that starts one like it."""
    try:
        with _client(server.url) as client:
            command = [str(client.info("server")["executable"])]
            for option in _KEPT_OPTIONS:
                command += [f"--{option}", str(client.config_get(option)[option])]
            with suppress(redis.ConnectionError):  # it closes the connection rather than answer
                client.shutdown(nosave=True)
    except redis.RedisError as error:
        raise CacheUnavailable(f"the {server.kind} at {server.url} cannot be shut down: {error}") from error
    deadline = time.monotonic() + STOP_TIMEOUT
    while is_alive(server.url):
        if time.monotonic() > deadline:
            raise CacheUnavailable(f"the {server.kind} at {server.url} did not end within {STOP_TIMEOUT:g} s")
        time.sleep(embedded.POLL_INTERVAL)
    return command


def _client(url: str) -> Any:
    """Make a plain client that tries everything once."""
    if url.startswith("embedded://"):
        url = embedded_url(url.removeprefix("embedded://") or "default").url
    options = {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT, "retry": Retry(NoBackoff(), 0)}
    try:
        return redis.Redis.from_url(url, decode_responses=False, **options)
    except ValueError as error:
        raise ConfigError("url", f"this needs a redis://, rediss://, unix:// or embedded:// URL: {error}") from None
