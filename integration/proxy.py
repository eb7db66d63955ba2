"""A TCP proxy on the loopback interface that stands between a cache and its Redis and misbehaves on demand.

A fault concerns the connections whose client name contains a text; the name is read from the ``CLIENT SETNAME`` of
their handshake. ``SUBSCRIBER`` names the connection that receives invalidations, ``COMMANDS`` the others of a cache,
``EVERYTHING`` all of them, those in their handshake included.

What a network can do to a connection, and what does it here::

    proxy.hold(SUBSCRIBER)                      # black hole: nothing arrives, not even the news of a close; TCP keeps
    proxy.heal()                                # ... and delivers it when the network is well again
    proxy.hold(SUBSCRIBER, directions=TO_CLIENT)    # half-open: one direction alone
    proxy.delay(0.2, SUBSCRIBER)                # a long way: everything arrives, later, in order
    proxy.cut(SUBSCRIBER)                       # closed, once
    proxy.refuse(SUBSCRIBER)                    # closed, and new ones too, as soon as their name is known
    proxy.upstream = other_server.url           # failover: where new connections lead to
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self
    from urllib.parse import SplitResult

SUBSCRIBER = ":subscriber"
COMMANDS = "commands"
EVERYTHING = ""
TO_SERVER = "to server"
TO_CLIENT = "to client"
BOTH = (TO_SERVER, TO_CLIENT)

CHUNK = 64 * 1024  # bytes read at once
HANDSHAKE = 4096  # bytes in which a connection must have said its name
STOP_TIMEOUT = 5.0  # seconds until the proxy's thread must have ended

_NAME = re.compile(rb"coherent-cache:[^\r\n]+")


class _Pipe:
    """One direction of a connection: bytes with the moment of their arrival, delivered in order."""

    def __init__(self, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.direction = direction
        self.reader = reader
        self.writer = writer
        self.waiting: deque[tuple[float, bytes]] = deque()  # no bytes: the other side has closed
        self.changed = asyncio.Event()


class _Connection:
    """A client's connection and the one to the server that belongs to it."""

    def __init__(self, number: int, upstream: SplitResult) -> None:
        self.number = number
        self.upstream = upstream
        self.name: str | None = None  # None until its handshake has told
        self.head = b""
        self.pipes: list[_Pipe] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.closed = False

    def matches(self, name: str) -> bool:
        if name == EVERYTHING or self.name is None:
            return name == EVERYTHING
        return SUBSCRIBER not in self.name if name == COMMANDS else name in self.name

    def close(self) -> None:
        self.closed = True
        for writer in self.writers:
            writer.transport.abort()
        for pipe in self.pipes:
            pipe.changed.set()


class Proxy:
    """Forwards connections to the server at ``upstream``, and does to them what a test wants.

    Attributes:
        upstream: URL of the server that new connections lead to; may be changed at any time.
        url: the same URL with the proxy's own address: where caches connect to.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self._connections: dict[int, _Connection] = {}
        self._made = 0
        self._held: set[tuple[str, str]] = set()  # (name, direction)
        self._delays: dict[tuple[str, str], float] = {}
        self._refused: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._accept, "127.0.0.1", 0), self._loop
        ).result(STOP_TIMEOUT)
        parts = urlsplit(upstream)
        user, at, _ = parts.netloc.rpartition("@")
        port = self._server.sockets[0].getsockname()[1]
        self.url = urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{port}"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- for tests ---------------------------------------------------------------------------------------------------

    def hold(self, name: str = EVERYTHING, directions: str | tuple[str, ...] = BOTH) -> None:
        """Let nothing through, without closing anything; ``heal`` delivers it."""
        self._do(lambda: self._held.update((name, direction) for direction in _several(directions)))

    def delay(self, seconds: float, name: str = EVERYTHING, directions: str | tuple[str, ...] = BOTH) -> None:
        """Deliver what arrives from now on ``seconds`` later, in each of the directions."""
        self._do(lambda: self._delays.update({(name, direction): seconds for direction in _several(directions)}))

    def refuse(self, name: str = EVERYTHING) -> None:
        """Close matching connections, and each new one as soon as its name is known."""
        self._do(lambda: (self._refused.add(name), self._cut(name)))

    def cut(self, name: str = EVERYTHING) -> int:
        """Close matching connections; return how many there were."""
        return int(self._do(lambda: self._cut(name)))

    def heal(self, name: str | None = None) -> None:
        """End all faults, or those that were made with this name, and deliver what was held."""

        def forget() -> None:
            self._held = {fault for fault in self._held if name not in (None, fault[0])}
            self._delays = {fault: delay for fault, delay in self._delays.items() if name not in (None, fault[0])}
            self._refused = {fault for fault in self._refused if name not in (None, fault)}

        self._do(forget)

    def names(self) -> list[str]:
        """Return the names of the connections that are open, oldest first."""
        return list(self._do(lambda: [each.name for each in self._connections.values() if each.name is not None]))

    def close(self) -> None:
        """Close everything, and end the thread."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop).result(STOP_TIMEOUT)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_TIMEOUT)
        assert not self._thread.is_alive(), "the proxy's thread does not end"
        self._loop.close()

    # -- in the thread -----------------------------------------------------------------------------------------------

    def _do(self, function: Callable[[], Any]) -> Any:
        async def run() -> Any:
            result = function()
            for connection in self._connections.values():
                for pipe in connection.pipes:
                    pipe.changed.set()
            return result

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(STOP_TIMEOUT)

    def _cut(self, name: str) -> int:
        found = [connection for connection in self._connections.values() if connection.matches(name)]
        for connection in found:
            connection.close()
        return len(found)

    async def _shut_down(self) -> None:
        self._server.close()
        self._cut(EVERYTHING)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._made += 1
        connection = _Connection(self._made, urlsplit(self.upstream))
        connection.writers.append(writer)
        self._connections[connection.number] = connection
        try:
            if EVERYTHING not in self._refused:
                await self._forward(connection, reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            connection.close()
            del self._connections[connection.number]
            self._tasks.discard(task)

    async def _forward(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        server = connection.upstream
        to_reader, to_writer = await asyncio.open_connection(server.hostname, server.port or 6379)
        connection.writers.append(to_writer)
        there = _Pipe(TO_SERVER, reader, to_writer)
        back = _Pipe(TO_CLIENT, to_reader, writer)
        connection.pipes += (there, back)
        work = [asyncio.ensure_future(coroutine(connection, pipe)) for pipe in (there, back)
                for coroutine in (self._read, self._write)]  # fmt: skip
        try:
            # The first writer to end, because one side has closed and that was delivered, ends the connection.
            writing = work[1::2]
            await asyncio.wait(writing, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in work:
                each.cancel()
            await asyncio.gather(*work, return_exceptions=True)

    async def _read(self, connection: _Connection, pipe: _Pipe) -> None:
        data = b"?"
        while data:
            try:
                data = await pipe.reader.read(CHUNK)
            except OSError:
                data = b""
            if pipe.direction is TO_SERVER and connection.name is None and len(connection.head) < HANDSHAKE:
                connection.head += data
                if (found := _NAME.search(connection.head)) is not None:
                    connection.name = found[0].decode("ascii", "replace")
                    if any(connection.matches(name) for name in self._refused):
                        connection.close()
                        return
            pipe.waiting.append((time.monotonic(), data))
            pipe.changed.set()

    async def _write(self, connection: _Connection, pipe: _Pipe) -> None:
        while not connection.closed:
            pipe.changed.clear()
            wait = self._wait(connection, pipe)
            if wait != 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(pipe.changed.wait(), wait)
                continue
            _, data = pipe.waiting.popleft()
            if not data:
                return
            try:
                pipe.writer.write(data)
                await pipe.writer.drain()
            except OSError:
                return

    def _wait(self, connection: _Connection, pipe: _Pipe) -> float | None:
        """Return the seconds until the next bytes may be delivered; None: not before something changes."""
        if not pipe.waiting:
            return None
        for name, direction in self._held:
            if direction == pipe.direction and connection.matches(name):
                return None
        arrived = pipe.waiting[0][0]
        delays = [
            seconds
            for (name, direction), seconds in self._delays.items()
            if direction == pipe.direction and connection.matches(name)
        ]
        return max(0.0, arrived + max(delays, default=0.0) - time.monotonic())


def _several(directions: str | tuple[str, ...]) -> tuple[str, ...]:
    return (directions,) if isinstance(directions, str) else directions
