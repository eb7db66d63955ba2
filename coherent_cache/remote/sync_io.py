"""Runs requests with threads: a small pool of connections, one round trip per call, no retries (review A8, A25)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Final

import redis

from coherent_cache.core.requests import LeaveRequest, MembersRequest, ReadRequest, Reply, Request
from coherent_cache.errors import CacheUnavailable
from coherent_cache.remote.connection import CommandConnection, ConnectionLost, ReplyError, connect
from coherent_cache.remote.scripts import Call, PlainCall, ReadCall, ScriptCall, Scripts, StoreCall
from coherent_cache.remote.topology import Endpoint

_CHANGE_NO_VALUES: Final = frozenset((ReadRequest, MembersRequest, LeaveRequest))


class ConnectionPool:
    """Idle connections. A caller that finds none and may not make one waits."""

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
        # None stands for a connection that may be made.
        self._idle: SimpleQueue[CommandConnection | None] = SimpleQueue()
        self._unmade = list(range(size))
        self.server: str | None = None
        """Run id of the server that the subscriber is synchronised with; idle connections to others are closed: after
        a failover an old primary may go on answering those that it still has (P16). None if it is not known."""
        self._closed = False
        self._pid = os.getpid()

    def acquire(self) -> CommandConnection:
        """Take a connection that is ready for a command; it must be given back by :meth:`release`.

        Raises:
            CacheUnavailable: none is free, or none can be made. Nothing was sent.
        """
        if self._pid != os.getpid():  # a child came back from a fork in the middle of the parent's operation (P13)
            raise CacheUnavailable("this operation is the parent process'; call it again in this one")
        self._refuse_if_closed()
        try:
            connection = self._idle.get_nowait()
        except Empty:
            connection = self._wait()
            if self._closed:  # meanwhile
                self._idle.put(connection)
                self.close()
                self._refuse_if_closed()
        if connection is not None:
            if connection.is_quiet() and self.server in (None, connection.server):
                return connection
            # Closed by the server, with an answer nobody waits for, or to another server: never use it again.
            connection.close()
        try:
            return connect(self._endpoint, name=self._name)
        except BaseException as error:
            self._idle.put(None)
            if isinstance(error, redis.RedisError | OSError):
                message = f"cannot connect to Redis at {self._endpoint.description}: {error}"
                raise CacheUnavailable(message) from error
            raise

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise CacheUnavailable("the cache is closed")

    def _wait(self) -> CommandConnection | None:
        try:
            self._unmade.pop()
        except IndexError:
            pass
        else:
            return None
        try:
            return self._idle.get(timeout=self._timeout)
        except Empty:
            raise CacheUnavailable(
                f"none of {self._size} connections became free within {self._timeout} s; raise 'max_connections'"
            ) from None

    def release(self, connection: CommandConnection, *, sound: bool) -> None:
        """Give a connection back; one that is not sound is closed: a reply may still be on its way (review A25)."""
        if sound:
            self._idle.put(connection)
        else:
            connection.close()
            self._idle.put(None)
        if self._closed:  # perhaps only since this one was lent
            self.close()

    def close(self) -> None:
        """Close idle connections now, lent ones when they come back; whoever waits for one is told."""
        self._closed = True
        emptied = 0
        try:
            while True:
                connection = self._idle.get_nowait()
                emptied += 1
                if connection is not None:
                    connection.close()
        except Empty:
            pass
        for _ in range(emptied):
            self._idle.put(None)


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
        writes = type(requests[0]) not in _CHANGE_NO_VALUES  # reads and writes are never sent together
        answers, server, sent_at = self._exchange(calls, writes=writes)
        replies = []
        for call, answer in zip(calls, answers, strict=True):
            try:
                replies.append(call.parse(answer, server, sent_at))
            except ReplyError as error:
                if isinstance(call, ReadCall) and error.code == "OOM":
                    # Out of memory, Redis queues no command of a transaction, not even reads; scripts may read.
                    return self.execute([request._replace(judge_tags=True) for request in _reads(requests)])
                raise self._refusal(error, write=writes) from error
            except (TypeError, ValueError, IndexError) as error:
                message = "Redis answered something that is no answer to our commands"
                raise CacheUnavailable(message, maybe_applied=writes) from error
        return replies

    def ask(self, call: ScriptCall | PlainCall) -> tuple[Any, str]:
        """Run one call; return the raw answer (or ReplyError) and the run id of the server that gave it.

        Raises:
            CacheUnavailable: Redis is away.
        """
        answers, server, _ = self._exchange([call], writes=False)
        return answers[0][-1], server

    def _refusal(self, error: ReplyError, *, write: bool) -> Exception:
        """Return our error for an error answer."""
        return self._scripts.error(error) or CacheUnavailable(
            f"Redis at {self._endpoint.description} refused: {error}",
            maybe_applied=write and not self._scripts.refused_before_any_write(error),
        )

    def _exchange(self, calls: Sequence[Call], *, writes: bool) -> tuple[list[list[Any]], str, float]:
        """Send calls; return the replies of each, the server's run id and the local clock before sending.

        A script that the server does not know is sent as text.
        """
        connection = self._pool.acquire()
        sound = False
        try:
            sent_at = self._clock()
            if len(calls) == 1:
                answers = [connection.exchange(calls[0].packed, calls[0].replies)]
            else:
                packed = b"".join([call.packed for call in calls])
                replies = iter(connection.exchange(packed, sum(call.replies for call in calls)))
                answers = [[next(replies) for _ in range(call.replies)] for call in calls]
            for at, call in enumerate(calls):
                first = answers[at][0]
                if (
                    isinstance(first, ReplyError)
                    and first.code == "NOSCRIPT"
                    and isinstance(call, ScriptCall | StoreCall)
                ):
                    answers[at] = connection.exchange(call.packed_with_text(), 1)
            sound = True
        except ConnectionLost as error:
            raise CacheUnavailable(
                f"the connection to Redis at {self._endpoint.description} failed: {error}", maybe_applied=writes
            ) from error
        finally:
            self._pool.release(connection, sound=sound)
        return answers, connection.server, sent_at


def _reads(requests: Sequence[Request]) -> list[ReadRequest]:
    return [request for request in requests if isinstance(request, ReadRequest)]
