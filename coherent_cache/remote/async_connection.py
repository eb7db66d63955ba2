"""One connection of an event loop: made by redis.asyncio, then driven without it, for all tasks at once.

Every task writes its commands at once and waits for its replies, which come in the order of the commands. So a task
that is cancelled costs nobody a connection: its replies are dropped when they come. What is no socket (fakeredis) is
driven through redis-py: it answers at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from collections import deque
from typing import Any, Final, NamedTuple, Protocol
from weakref import WeakSet

import hiredis
import redis

from coherent_cache.remote.connection import ConnectionLost, DrivenConnection, ReplyError
from coherent_cache.remote.topology import Endpoint, may_not_ask
from coherent_cache.threads import in_own_thread


class AsyncConnection(Protocol):
    """A connection for the commands of one event loop.

    Attributes:
        server: run id of the server that it leads to.
        users: how many tasks have not sent yet all that they have to send on it; counted by who lends it.
    """

    server: str
    users: int

    async def exchange(self, packed: bytes, replies: int) -> list[Any]:
        """Send packed commands, return that many replies; error replies are returned as :class:`ReplyError`.

        Raises:
            ConnectionLost: the connection ended, or did not answer in time; it must not be used any more.
        """

    def is_usable(self) -> bool:
        """Tell whether it is open and nothing unexpected has come in."""

    def retire(self) -> None:
        """Close it as soon as nobody waits for replies any more."""

    def close(self) -> None:
        """Close it; who waits for replies is told. A second call does nothing."""

    async def wait_closed(self) -> None:
        """Wait until the loop has let go of it."""


async def connect(endpoint: Endpoint, *, name: str) -> AsyncConnection:
    """Connect.

    Raises:
        redis.RedisError, OSError: it could not be connected.
    """
    if endpoint.in_memory:
        return MemoryConnection(DrivenConnection(endpoint.connect(name=name)))
    connection = await in_own_thread(lambda: _make(endpoint, name), name=f"{name}:connect")
    try:
        await connection.connect()
        await connection.send_command(*endpoint.question)
        try:
            info = await connection.read_response(disable_decoding=True)
        except redis.exceptions.NoPermissionError as error:
            raise may_not_ask(error) from None
        return StreamConnection(connection, endpoint.run_id_of(info), timeout=endpoint.kwargs["socket_timeout"])
    except BaseException:
        await connection.disconnect(nowait=True)
        raise


def _make(endpoint: Endpoint, name: str) -> Any:
    """Make a connection; asks sentinels, and reads files: redis-py's version, certificates."""
    sentinels = endpoint.sentinels
    connection = endpoint.make_asynchronous(name=name, address=None if sentinels is None else sentinels.locate())
    certificates = getattr(connection, "ssl_context", None)
    if certificates is not None:
        certificates.get()
    return connection


class _Exchange(NamedTuple):
    """Commands that were sent.

    Attributes:
        answered: takes the replies.
        replies: how many there will be.
        timer: ends the connection if they do not come.
    """

    answered: asyncio.Future[list[Any]]
    replies: int
    timer: asyncio.TimerHandle


class StreamConnection(asyncio.Protocol):
    """A connection over a stream: TCP, TLS, or a unix socket."""

    def __init__(self, connection: Any, server: str, *, timeout: float) -> None:
        """Take over a connected connection of redis.asyncio, of which nothing is left.

        Args:
            connection: the connection.
            server: run id of the server that it leads to.
            timeout: seconds to wait for replies.
        """
        self.server = server
        self.users = 0
        self._timeout = timeout
        self._writer: asyncio.StreamWriter = connection._writer  # noqa: SLF001  # kept: it closes what nobody keeps
        connection._writer = connection._reader = None  # noqa: SLF001
        self._transport = self._writer.transport
        self._loop = asyncio.get_running_loop()
        self._parser = hiredis.Reader(notEnoughData=Ellipsis, replyError=ReplyError)
        self._received: list[Any] = []
        self._exchanges: deque[_Exchange] = deque()
        self._error: str | None = None
        self._retiring = False
        self._closed = self._loop.create_future()
        self._fd: int = self._transport.get_extra_info("socket").fileno()
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._transport.set_protocol(self)
        _open.add(self)

    async def exchange(self, packed: bytes, replies: int) -> list[Any]:
        """Send packed commands, return that many replies; see :class:`AsyncConnection`."""
        if self._error is not None:
            raise ConnectionLost(self._error, sent=False)
        answered: asyncio.Future[list[Any]] = self._loop.create_future()
        timer = self._loop.call_later(self._timeout, self._end, "no answer in time")
        self._exchanges.append(_Exchange(answered, replies, timer))
        self._transport.write(packed)
        return await answered

    def is_usable(self) -> bool:
        """Tell whether it is open and nothing unexpected has come in."""
        return self._error is None and (bool(self._exchanges) or not (self._received or self._poll.poll(0)))

    def retire(self) -> None:
        """Close it as soon as nobody waits for replies any more."""
        self._retiring = True
        if not self._exchanges:
            self.close()

    def close(self) -> None:
        """Close it; who waits for replies is told."""
        self._end("closed")

    async def wait_closed(self) -> None:
        """Wait until the loop has let go of it."""
        await asyncio.shield(self._closed)

    def data_received(self, data: bytes) -> None:
        """Take in what has come, and hand it to those whose it is."""
        received, gets, exchanges = self._received, self._parser.gets, self._exchanges
        try:
            self._parser.feed(data)
            while (reply := gets(False)) is not Ellipsis:  # bytes, not text
                if type(reply) is not hiredis.PushNotification:
                    received.append(reply)
        except hiredis.HiredisError as error:
            self._end(str(error))
            return
        while exchanges and len(received) >= exchanges[0].replies:
            answered, replies, timer = exchanges.popleft()
            timer.cancel()
            if not answered.done():  # cancelled
                answered.set_result(received[:replies])
            del received[:replies]
        if self._retiring:
            self.retire()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell those who wait."""
        self._end(str(exc) if exc else "closed by the server")
        if not self._closed.done():
            self._closed.set_result(None)

    def _end(self, error: str) -> None:
        if self._error is not None:
            return
        self._error = error
        _open.discard(self)
        self._poll.unregister(self._fd)
        if self._loop.is_closed():
            # Whoever closed it let go of nothing: at least the server is told.
            with contextlib.suppress(OSError, TypeError):  # perhaps it is closed; uvloop's cannot do that
                self._transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
            return
        self._transport.abort()
        for answered, _, timer in self._exchanges:
            timer.cancel()
            if not answered.done():
                answered.set_exception(ConnectionLost(error))
        self._exchanges.clear()

    def abandon(self) -> None:
        """In a forked child: close its copy of the parent's socket, without a shutdown (P13).

        Something else takes the descriptor's place, so that it can be closed again. The loop's selector is not told: it
        is the parent's as well.
        """
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, self._fd)
        os.close(nowhere)
        self._error = "this connection is the parent process'"


_open: Final[WeakSet[StreamConnection]] = WeakSet()
_inherited: Final[list[StreamConnection]] = []
"""Connections of the parent, kept so that nothing is told to its loop when they go."""


def _abandon_inherited() -> None:
    for connection in list(_open):
        connection.abandon()
        _inherited.append(connection)
    _open.clear()


os.register_at_fork(after_in_child=_abandon_inherited)


class MemoryConnection:
    """A connection to a fakeredis in this process. It lets other tasks run where a real one would."""

    def __init__(self, driven: DrivenConnection) -> None:
        """Take over a connected connection."""
        self.server = driven.server
        self.users = 0
        self._driven = driven
        self._error: str | None = None

    async def exchange(self, packed: bytes, replies: int) -> list[Any]:
        """Send packed commands, return that many replies; see :class:`AsyncConnection`."""
        if self._error is not None:
            raise ConnectionLost(self._error, sent=False)
        answers = self._driven.exchange(packed, replies)
        await asyncio.sleep(0)
        return answers

    def is_usable(self) -> bool:
        """Tell whether it is open and nothing unexpected has come in."""
        return self._error is None and self._driven.is_quiet()

    def retire(self) -> None:
        """Close it: there is never a reply that has not come yet."""
        self.close()

    def close(self) -> None:
        """Close it."""
        if self._error is None:
            self._error = "closed"
            self._driven.close()

    async def wait_closed(self) -> None:
        """Return at once."""
