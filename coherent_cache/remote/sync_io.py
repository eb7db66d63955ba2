"""Runs requests with threads: a small pool of connections, one round trip per call, no retries (review A8, A25)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import redis
from redis.connection import AbstractConnection

from coherent_cache.core.requests import ReadRequest, Reply, Request
from coherent_cache.errors import CacheUnavailable, CoherentCacheError
from coherent_cache.remote.scripts import Call, Scripts
from coherent_cache.remote.topology import Endpoint, server_of

_REFUSED_BEFORE_ANY_WRITE: Final = (
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.NoScriptError,
    redis.exceptions.BusyLoadingError,
    redis.exceptions.AuthenticationError,
    redis.exceptions.NoPermissionError,
)
_REFUSAL_CODES: Final = ("MISCONF", "NOREPLICAS", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "NOAUTH", "NOPERM", "WRONGTYPE")


class ConnectionPool:
    """Idle connections, used latest first. A caller that finds none and may not make one waits."""

    def __init__(self, endpoint: Endpoint, *, name: str, size: int, timeout: float) -> None:
        """Make an empty pool.

        Args:
            endpoint: where to connect to.
            name: client name of the connections.
            size: most connections.
            timeout: seconds to wait for a free one.
        """
        self._endpoint = endpoint
        self._name = name
        self._size = size
        self._timeout = timeout
        self._idle: list[AbstractConnection] = []
        self._permits = threading.BoundedSemaphore(size)
        self._closed = False

    @contextmanager
    def connection(self) -> Iterator[AbstractConnection]:
        """Lend a connection that is ready for a command.

        It is closed, not returned, if an exception leaves the block: a reply may still be on its way (review A25).

        Raises:
            CacheUnavailable: none is free, or none can be made. Nothing was sent.
        """
        if not self._permits.acquire(timeout=self._timeout):
            raise CacheUnavailable(
                f"none of {self._size} connections became free within {self._timeout} s; raise 'max_connections'"
            )
        try:
            connection = self._ready()
            try:
                yield connection
            except BaseException:
                connection.disconnect()
                raise
            if self._closed:
                connection.disconnect()
            else:
                self._idle.append(connection)
        finally:
            self._permits.release()

    def _ready(self) -> AbstractConnection:
        if self._closed:
            raise CacheUnavailable("the cache is closed")
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._endpoint.make(name=self._name)
        try:
            if connection.is_connected:
                try:
                    if not connection.can_read(0):
                        return connection
                except redis.RedisError:
                    pass
                # Closed by the server, or with an answer nobody waits for: never use it again.
                connection.disconnect()
            connection.connect()
        except (redis.RedisError, OSError) as error:
            connection.disconnect()
            raise CacheUnavailable(f"cannot connect to Redis at {self._endpoint.description}: {error}") from error
        except BaseException:
            connection.disconnect()
            raise
        return connection

    def close(self) -> None:
        """Close idle connections now, lent ones when they come back."""
        self._closed = True
        while self._idle:
            self._idle.pop().disconnect()


class SyncIO:
    """Runs requests: one pipelined round trip per call."""

    def __init__(self, endpoint: Endpoint, scripts: Scripts, pool: ConnectionPool, clock: Callable[[], float]) -> None:
        """Combine the parts.

        Args:
            endpoint: where the pool connects to, for messages.
            scripts: makes calls of requests.
            pool: the connections.
            clock: local clock in seconds.
        """
        self._endpoint = endpoint
        self._scripts = scripts
        self._pool = pool
        self._clock = clock

    def execute(self, requests: Sequence[Request]) -> list[Reply]:
        """Send requests in one go and return their replies, in order.

        Raises:
            CacheUnavailable: Redis refused one or is away; tells whether a write may have happened.
            NamespaceMismatch: the namespace was created with other settings. Nothing was done.
        """
        calls = [self._scripts.call(request) for request in requests]
        writes = not all(isinstance(request, ReadRequest) for request in requests)
        with self._pool.connection() as connection:
            sent_at = self._clock()
            answers = self._exchange(connection, calls, writes=writes)
            server = server_of(connection)
        replies = []
        for call, answer in zip(calls, answers, strict=True):
            if isinstance(answer, redis.RedisError):
                raise self.refusal(answer, write=writes) from answer
            try:
                replies.append(call.parse(answer, server, sent_at))
            except (TypeError, ValueError, IndexError) as error:
                message = "Redis answered something that is no answer of our scripts"
                raise CacheUnavailable(message, maybe_applied=writes) from error
        return replies

    def ask(self, call: Call) -> tuple[Any, str]:
        """Run one call; return the raw answer (maybe a redis error) and the run id of the server that gave it.

        Raises:
            CacheUnavailable: Redis is away.
        """
        with self._pool.connection() as connection:
            return self._exchange(connection, [call], writes=False)[0], server_of(connection)

    def refusal(self, error: redis.RedisError, *, write: bool) -> CoherentCacheError | Exception:
        """Return our error for an error answer."""
        text = str(error)
        own = self._scripts.error(text)
        if own is not None:
            return own
        definite = isinstance(error, _REFUSED_BEFORE_ANY_WRITE) or text.startswith(_REFUSAL_CODES)
        # An error raised by a command inside a script may come after the first write.
        inside = "script:" in text and not isinstance(error, redis.exceptions.OutOfMemoryError)
        return CacheUnavailable(
            f"Redis at {self._endpoint.description} refused: {text}", maybe_applied=write and (inside or not definite)
        )

    def _exchange(self, connection: AbstractConnection, calls: Sequence[Call], *, writes: bool) -> list[Any]:
        """Send calls, read all answers; error answers are returned, not raised."""
        try:
            self._send(connection, [(b"EVALSHA", call.script.sha, *call.arguments) for call in calls])
            answers = [_receive(connection) for _ in calls]
            unknown = [at for at, answer in enumerate(answers) if isinstance(answer, redis.exceptions.NoScriptError)]
            if unknown:
                self._send(connection, [(b"EVAL", calls[at].script.text, *calls[at].arguments) for at in unknown])
                for at in unknown:
                    answers[at] = _receive(connection)
        except (redis.RedisError, OSError) as error:
            raise CacheUnavailable(
                f"the connection to Redis at {self._endpoint.description} failed: {error}", maybe_applied=writes
            ) from error
        return answers

    @staticmethod
    def _send(connection: AbstractConnection, commands: Sequence[tuple[Any, ...]]) -> None:
        if len(commands) == 1:
            packed = connection.pack_command(*commands[0])
        else:
            packed = [b"".join(b"".join(connection.pack_command(*command)) for command in commands)]
        connection.send_packed_command(packed, check_health=False)


def _receive(connection: AbstractConnection) -> Any:
    try:
        return connection.read_response(disable_decoding=True)
    except redis.ConnectionError:
        raise
    except redis.ResponseError as error:
        return error
