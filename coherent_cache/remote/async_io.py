"""Runs requests with asyncio: one connection per event loop, shared by its tasks, no retries (review A8, A25)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import redis

from coherent_cache.core.requests import Reply, Request
from coherent_cache.errors import CacheUnavailable, NotPermitted
from coherent_cache.remote.async_connection import AsyncConnection, connect
from coherent_cache.remote.connection import ConnectionLost, ReplyError
from coherent_cache.remote.exchange import (
    Exchange,
    change_values,
    explained,
    judged_by_script,
    no_connection,
    packed_again,
)
from coherent_cache.remote.scripts import Call, Scripts
from coherent_cache.remote.topology import Endpoint


class AsyncIO(Exchange):
    """Runs requests on the event loop that it was made on: one pipelined round trip per call."""

    def __init__(
        self,
        endpoint: Endpoint,
        scripts: Scripts,
        clock: Callable[[], float],
        *,
        name: str,
        server: Callable[[], str | None],
    ) -> None:
        """Combine the parts; nothing is connected yet.

        Args:
            endpoint: where to connect to.
            scripts: makes calls of requests.
            clock: local clock in seconds.
            name: client name of the connection.
            server: returns the run id of the server that the subscriber is synchronised with, None if it is not known.
                A connection to another one is not used any more: after a failover an old primary may go on answering
                (P16).
        """
        super().__init__(endpoint, scripts, clock)
        self._name = name
        self._server = server
        self._connection: AsyncConnection | None = None
        self._attempt: asyncio.Task[AsyncConnection | Exception] | None = None
        self._waiting = 0
        self._closed = False

    async def execute(self, requests: Sequence[Request]) -> list[Reply]:
        """Send requests in one go and return their replies, in order.

        A task that is cancelled here leaves open whether they were executed.

        Raises:
            CacheUnavailable: Redis refused one or is away; tells whether a write may have happened.
            NamespaceMismatch: the namespace was created with other settings. Nothing was done.
        """
        calls = [self._scripts.call(request) for request in requests]
        writes = change_values(requests)
        answers, server, sent_at = await self._exchange(calls, writes=writes)
        try:
            replies = self._replies(calls, answers, server, sent_at, writes=writes)
        except NotPermitted as error:
            raise explained(error, await self._lacking_rights()) from error.__cause__
        return await self.execute(judged_by_script(requests)) if replies is None else replies

    async def _lacking_rights(self) -> tuple[str, ...]:
        """Ask which rights the user lacks, on a connection for that alone; nothing if that cannot be found out."""
        rights = self._scripts.rights
        try:
            connection = await connect(self._endpoint, name=self._name)
            try:
                if isinstance((await connection.exchange(rights.begin, 1))[0], ReplyError):
                    return ("+multi",)
                return rights.lacking(await connection.exchange(rights.question, rights.replies))
            finally:
                connection.close()
                await connection.wait_closed()
        except (redis.RedisError, OSError, ConnectionLost):
            return ()

    async def _exchange(self, calls: Sequence[Call], *, writes: bool) -> tuple[list[list[Any]], str, float]:
        """Send calls; return the replies of each, the server's run id and the local clock before sending.

        A script that the server does not know is sent as text.
        """
        connection = self._connection
        if connection is None or not connection.is_usable() or self._server() not in (None, connection.server):
            connection = await self._connect()
        connection.users += 1
        sent = False
        try:
            sent_at = self._clock()
            if len(calls) == 1:
                answers = [await connection.exchange(calls[0].packed, calls[0].replies)]
            else:
                packed = b"".join([call.packed for call in calls])
                replies = iter(await connection.exchange(packed, sum(call.replies for call in calls)))
                answers = [[next(replies) for _ in range(call.replies)] for call in calls]
            sent = True
            for at, call in enumerate(calls):
                text = packed_again(call, answers[at])
                if text is not None:
                    answers[at] = await connection.exchange(text, 1)
        except ConnectionLost as error:
            raise self._lost(error, writes=writes and (sent or error.sent)) from error
        finally:
            connection.users -= 1
            if not connection.users and connection is not self._connection:
                connection.retire()
        return answers, connection.server, sent_at

    async def _connect(self) -> AsyncConnection:
        """Connect, all tasks at once.

        Raises:
            CacheUnavailable: it cannot be connected. Nothing was sent.
        """
        if self._closed:
            raise CacheUnavailable("the cache is closed")
        attempt = self._attempt
        if attempt is None:
            attempt = asyncio.get_running_loop().create_task(self._try(), name=f"{self._name}:connect")
            attempt.add_done_callback(self._forget)
            self._attempt = attempt
        self._waiting += 1
        try:
            # Who is cancelled here does not end the attempt of the others, and its end is no cancellation of theirs.
            if not attempt.done():
                await asyncio.wait([attempt])
        finally:
            self._waiting -= 1
            self._forget(attempt)
        if attempt.cancelled():
            raise CacheUnavailable("the cache is closed" if self._closed else "connecting was cancelled")
        connection = attempt.result()
        if isinstance(connection, Exception):
            raise no_connection(self._endpoint, self._scripts.rights, connection) from connection
        return connection

    def _forget(self, attempt: asyncio.Task[Any]) -> None:
        """Let the next one who needs a connection try anew.

        Not before all who waited have got what the attempt made: nobody replaces a connection that others were given
        and have not used yet.
        """
        if self._attempt is attempt and attempt.done() and not self._waiting:
            self._attempt = None

    async def _try(self) -> AsyncConnection | Exception:
        """Replace the connection; return why it cannot be."""
        old, self._connection = self._connection, None
        if old is not None:
            if not old.is_usable():
                old.close()
            elif not old.users:  # otherwise the last of them does it
                old.retire()
        try:
            connection = await connect(self._endpoint, name=self._name)
        except (redis.RedisError, OSError) as error:
            return error
        if self._closed:
            connection.close()
            return CacheUnavailable("the cache is closed")
        self._connection = connection
        return connection

    def close(self) -> None:
        """Close the connection; who waits for replies is told."""
        self._closed = True
        if self._attempt is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                self._attempt.cancel()
        if self._connection is not None:
            self._connection.close()

    async def wait_closed(self) -> None:
        """Wait until the loop has let go of the connection."""
        if self._connection is not None:
            await self._connection.wait_closed()
