"""Runs requests with threads: a small pool of connections, one round trip per call, no retries (review A8, A25)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any

import redis

from coherent_cache.core.requests import Reply, Request
from coherent_cache.errors import CacheUnavailable, NotPermitted
from coherent_cache.remote.connection import CommandConnection, ConnectionLost, ReplyError, connect
from coherent_cache.remote.exchange import (
    Exchange,
    change_values,
    explained,
    judged_by_script,
    no_connection,
    packed_again,
)
from coherent_cache.remote.rights import Rights
from coherent_cache.remote.scripts import Call, PlainCall, ScriptCall, Scripts
from coherent_cache.remote.topology import Endpoint


class ConnectionPool:
    """Idle connections. A caller that finds none and may not make one waits."""

    def __init__(self, endpoint: Endpoint, rights: Rights, *, name: str, size: int, timeout: float) -> None:
        """Make an empty pool.

        Args:
            endpoint: where to connect to.
            rights: what its user needs.
            name: client name of the connections.
            size: most connections.
            timeout: seconds to wait for a free one.
        """
        self._endpoint = endpoint
        self._rights = rights
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
                raise no_connection(self._endpoint, self._rights, error) from error
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


class SyncIO(Exchange):
    """Runs requests: one pipelined round trip per call."""

    def __init__(self, endpoint: Endpoint, scripts: Scripts, pool: ConnectionPool, clock: Callable[[], float]) -> None:
        """Combine the parts.

        Args:
            endpoint: where the pool connects to, for messages.
            scripts: makes calls of requests.
            pool: the connections.
            clock: local clock in seconds.
        """
        super().__init__(endpoint, scripts, clock)
        self._pool = pool

    def execute(self, requests: Sequence[Request]) -> list[Reply]:
        """Send requests in one go and return their replies, in order.

        Raises:
            CacheUnavailable: Redis refused one or is away; tells whether a write may have happened.
            NamespaceMismatch: the namespace was created with other settings. Nothing was done.
        """
        calls = [self._scripts.call(request) for request in requests]
        writes = change_values(requests)
        answers, server, sent_at = self._exchange(calls, writes=writes)
        try:
            replies = self._replies(calls, answers, server, sent_at, writes=writes)
        except NotPermitted as error:
            raise explained(error, self.lacking_rights()) from error.__cause__
        return self.execute(judged_by_script(requests)) if replies is None else replies

    def lacking_rights(self) -> tuple[str, ...]:
        """Ask which rights the user lacks; nothing if that cannot be found out."""
        rights = self._scripts.rights
        try:
            connection = self._pool.acquire()
            try:
                if isinstance(connection.exchange(rights.begin, 1)[0], ReplyError):
                    return ("+multi",)
                return rights.lacking(connection.exchange(rights.question, rights.replies))
            finally:
                self._pool.release(connection, sound=False)
        except (CacheUnavailable, ConnectionLost):
            return ()

    def ask(self, call: ScriptCall | PlainCall) -> tuple[Any, str]:
        """Run one call; return the raw answer (or ReplyError) and the run id of the server that gave it.

        Raises:
            CacheUnavailable: Redis is away.
        """
        answers, server, _ = self._exchange([call], writes=False)
        return answers[0][-1], server

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
                text = packed_again(call, answers[at])
                if text is not None:
                    answers[at] = connection.exchange(text, 1)
            sound = True
        except ConnectionLost as error:
            raise self._lost(error, writes=writes) from error
        finally:
            self._pool.release(connection, sound=sound)
        return answers, connection.server, sent_at
