"""A TCP proxy in front of a Redis that misbehaves on demand: what a network can do to a cache, in a test.

::

    with FaultProxy("redis://localhost:6379/0") as proxy, CoherentCache(proxy.url, namespace="test") as cache:
        with proxy.hold(where="*:subscriber"):      # half-open: nothing arrives, nothing is closed
            ...
        proxy.cut(where="*:subscriber")             # closed, once
        with proxy.delay(0.2, jitter=0.1):          # a long way
            ...
        proxy.upstream = "redis://localhost:6380/0"     # fail-over: where new connections lead to

A fault lasts until its ``with`` block ends, ``end()`` is called, or :meth:`FaultProxy.heal` ends all. It concerns one
direction or both, and the connections that ``where`` selects: a glob for the client name that a connection has given
itself (``CLIENT SETNAME``, ``HELLO ... SETNAME``; empty as long as it has none), a function of
:class:`ProxiedConnection`, or None for all. A :class:`~coherent_cache.CoherentCache` calls its connections
``coherent-cache:<instance_id>``, and the one that receives invalidations ``coherent-cache:<instance_id>:subscriber``.

One thread does all the work and alone touches the sockets; the methods ask it, so they may be called by any thread, and
what they do is done when they return. Linux and macOS; TLS is not looked into, so a ``rediss://`` upstream is refused.
"""

from __future__ import annotations

import os
import random
import selectors
import socket
import struct
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from itertools import count
from types import TracebackType
from typing import Final, Literal, Self, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from coherent_cache.errors import ConfigError

Direction = Literal["to_server", "to_client", "both"]
Of = Literal["reply", "push"]
T = TypeVar("T")

CHUNK: Final = 64 * 1024
"""Bytes read at once."""

DEFAULT_BUFFER_BYTES: Final = 16 * 1024 * 1024
"""Bytes that one direction of a connection keeps before its sender has to wait, as on a network that is full."""

HEAD_BYTES: Final = 4096
"""Bytes of a command that are looked at for a client name."""

KEPT_CLOSED: Final = 1000
"""Closed connections whose counts are kept."""

SLICE_SECONDS: Final = 0.02
"""A throttled direction sends what this many seconds allow at once."""

STOP_TIMEOUT: Final = 5.0
"""Seconds until the thread must have done what it was asked."""

_PIPES: Final[tuple[Direction, ...]] = ("to_server", "to_client")
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER with no time: close() sends a reset
_PUBSUB_WORDS: Final = (b"message", b"smessage", b"subscribe", b"unsubscribe", b"ssubscribe", b"sunsubscribe")
_PUBSUB: Final = tuple(b"*3\r\n$%d\r\n%s\r\n" % (len(word), word) for word in _PUBSUB_WORDS)
"""How what RESP2 calls a message begins; RESP3 has a type for it."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What went one way through a connection.

    Attributes:
        received: bytes that its sender has sent.
        delivered: bytes that its receiver was sent.
        lost: bytes that a fault swallowed.
        frames: complete commands, or complete replies, that its sender has sent.
        pushes: complete Pub/Sub messages and other pushes that its sender has sent; they are no replies.
    """

    received: int = 0
    delivered: int = 0
    lost: int = 0
    frames: int = 0
    pushes: int = 0


@dataclass(frozen=True, slots=True)
class ProxiedConnection:
    """A connection as it was at some moment.

    Attributes:
        number: from 1, in the order of their making.
        name: the client name that it gave itself last; empty if none.
        upstream: where it leads: ``host:port``, or the path of a socket.
        is_open: whether it still exists.
        to_server: what the client sent.
        to_client: what the server sent.
    """

    number: int
    name: str
    upstream: str
    is_open: bool
    to_server: Traffic
    to_client: Traffic


Where = str | Callable[[ProxiedConnection], bool] | None

SUBSCRIBERS: Final = "coherent-cache:*:subscriber"
"""As ``where``: the connections on which caches receive invalidations."""


def commands(connection: ProxiedConnection) -> bool:
    """As ``where``: tell whether a cache sends its commands by a connection, rather than receive invalidations."""
    return connection.name.startswith("coherent-cache:") and not connection.name.endswith(":subscriber")


class Fault:
    """A fault that lasts: until :meth:`end`, the end of its ``with`` block, or its proxy's ``heal`` or ``close``."""

    def __init__(self, proxy: FaultProxy, rule: _Rule) -> None:
        """Made by the proxy's methods."""
        self._proxy = proxy
        self._rule = rule

    @property
    def active(self) -> bool:
        """Whether it has not ended. One that counts (the n-th reply, ...) ends by itself."""
        return self._rule.active

    def end(self) -> None:
        """End it; a second call does nothing."""
        self._proxy._end(self._rule)  # noqa: SLF001

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()


class FaultProxy:
    """A proxy on an ephemeral port of 127.0.0.1 in front of a Redis.

    Attributes:
        port: where it listens.
        url: what to give to clients: the upstream's URL with the proxy's address in it.
    """

    def __init__(self, upstream: str, *, buffer_bytes: int = DEFAULT_BUFFER_BYTES, seed: int | None = None) -> None:
        """Listen, and start the thread.

        Args:
            upstream: URL of the server: ``redis://host:port/0`` or ``unix:///path/to/socket``. User, password,
                database and options go into :attr:`url`.
            buffer_bytes: bytes that one direction of a connection keeps before its sender has to wait.
            seed: for the jitter of delays; None for another one each time.

        Raises:
            ConfigError: the URL is none of those.
        """
        self._target = _Target.of(upstream)
        self._upstream_url = upstream
        self._buffer_bytes = buffer_bytes
        self._rng = random.Random(seed)  # noqa: S311  # jitter is no secret
        self._rules: list[_Rule] = []
        self._connections: dict[int, _Connection] = {}
        self._closed_connections: deque[ProxiedConnection] = deque(maxlen=KEPT_CLOSED)
        self._numbers = count(1)
        self._refused = 0
        self._error: BaseException | None = None
        self._calls: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()  # guards _ended against the calls that are added
        self._ended = False
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = socket.socketpair()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        for each in (self._wake_in, self._wake_out, self._listener):
            each.setblocking(False)
        self._selector.register(self._wake_out, selectors.EVENT_READ, self._run_calls)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self.port = int(self._listener.getsockname()[1])
        self.url = self._target.url_through(self.port)
        self._thread = threading.Thread(target=self._run, name=f"fault proxy {self.port}", daemon=True)
        _proxies.add(self)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<FaultProxy 127.0.0.1:{self.port} -> {self._target.label}>"

    # -- faults ------------------------------------------------------------------------------------------------------

    def delay(
        self, seconds: float, *, jitter: float = 0.0, direction: Direction = "both", where: Where = None
    ) -> Fault:
        """Deliver what arrives from now on later, in order. When it ends, what still waits is delivered at once.

        Args:
            seconds: how much later.
            jitter: up to so many seconds more, at random.
            direction: ``to_server``, ``to_client`` or ``both``.
            where: which connections.
        """
        return self._add(_Rule("delay", direction, where, seconds=_amount(seconds), jitter=_amount(jitter)))

    def delay_reply(self, nth: int, seconds: float, *, of: Of = "reply", where: Where = None) -> Fault:
        """Deliver one reply later, and what follows it on its connection behind it.

        Args:
            nth: 1 for the next one that begins on any matching connection, 2 for the one after it, ...
            seconds: how much later.
            of: ``reply``, or ``push`` for Pub/Sub messages and other pushes.
            where: which connections.
        """
        return self._add(_Rule("delay one", "to_client", where, seconds=_amount(seconds), left=_positive(nth), of=of))

    def lose(self, number: int | None = None, *, of: Of = "push", where: Where = None) -> Fault:
        """Let whole Pub/Sub messages or replies vanish; what follows is delivered. No network does that; bugs do.

        Args:
            number: how many of the next ones; None for all until the fault ends.
            of: ``reply``, or ``push`` for Pub/Sub messages and other pushes.
            where: which connections.
        """
        left = -1 if number is None else _positive(number)
        return self._add(_Rule("lose", "to_client", where, left=left, of=of))

    def hold(self, *, direction: Direction = "both", where: Where = None) -> Fault:
        """Let nothing through, closing included, and deliver everything in order when it ends.

        A network that is well again after a while does that, for TCP has kept what it could not deliver. Beyond
        ``buffer_bytes`` the sender has to wait.
        """
        return self._add(_Rule("hold", direction, where))

    def black_hole(self, *, direction: Direction = "both", where: Where = None) -> Fault:
        """Let what arrives vanish, closing included, while the connection stays open.

        A connection that has lost bytes this way is reset when the fault ends: TCP never delivers what comes after a
        hole.
        """
        return self._add(_Rule("black hole", direction, where))

    def throttle(self, bytes_per_second: float, *, direction: Direction = "both", where: Where = None) -> Fault:
        """Deliver at most so many bytes per second, per connection and direction."""
        if not bytes_per_second > 0:
            raise ConfigError("bytes_per_second", f"must be positive, not {bytes_per_second!r}")
        return self._add(_Rule("throttle", direction, where, rate=bytes_per_second))

    def cut_after(self, number: int, *, direction: Direction = "both", where: Where = None) -> Fault:
        """Close each matching connection once ``number`` further bytes were delivered in a direction; not one more."""
        if number < 0:
            raise ConfigError("number", f"must be 0 or more, not {number!r}")
        return self._add(_Rule("cut after", direction, where, left=number))

    def refuse(self, *, where: Where = None, cut: bool = False) -> Fault:
        """Reset new connections: at once if ``where`` matches one without a name, else as soon as it has told its own.

        Args:
            where: which connections.
            cut: close those that are open too, and one that has yet to tell its name as soon as it has. Else they stay.
        """
        return self._add(_Rule("refuse", "both", where), cut=cut)

    def cut(self, *, where: Where = None, reset: bool = False) -> int:
        """Close matching connections on both sides, and forget what they still held; return how many there were.

        Args:
            where: which connections.
            reset: close with a TCP reset rather than in an orderly way.
        """
        _check_where(where)
        return self._call(partial(self._cut, where, reset=reset))

    def heal(self, *, where: Where = None) -> None:
        """End all faults.

        Args:
            where: end only those that were made with this very ``where``.
        """
        self._call(partial(self._heal, where))

    @property
    def upstream(self) -> str:
        """URL of the server that new connections lead to; may be changed at any time. Open ones stay where they are.

        User, password and database are the clients' business: :attr:`url` stays as it was made.
        """
        return self._upstream_url

    @upstream.setter
    def upstream(self, url: str) -> None:
        target = _Target.of(url)

        def switch() -> None:
            self._target, self._upstream_url = target, url

        self._call(switch)

    # -- what can be seen --------------------------------------------------------------------------------------------

    def connections(self, *, where: Where = None, closed: bool = False) -> list[ProxiedConnection]:
        """Return the connections that are open, oldest first.

        Args:
            where: which connections.
            closed: those that are closed too, the last 1,000 of them.
        """
        _check_where(where)

        def look() -> list[ProxiedConnection]:
            found = list(self._closed_connections) if closed else []
            found += [each.snapshot() for each in self._connections.values()]
            return sorted((each for each in found if _selects(where, each)), key=lambda each: each.number)

        return self._call(look)

    @property
    def refused(self) -> int:
        """How many connections were refused so far, or found no server."""
        return self._refused

    def close(self) -> None:
        """Close everything and end the thread. Idempotent.

        Raises:
            Exception: what a function given as ``where`` has raised.
            RuntimeError: the thread does not end.
        """
        with self._lock:
            ended, self._ended = self._ended, True
        if not ended:
            self._wake()
            self._thread.join(STOP_TIMEOUT)
            if self._thread.is_alive():
                raise RuntimeError("the fault proxy's thread does not end")
            self._wake_in.close()
            _proxies.discard(self)
        self._raise_error()

    # -- between the threads -----------------------------------------------------------------------------------------

    def _add(self, rule: _Rule, *, cut: bool = False) -> Fault:
        if rule.direction not in (*_PIPES, "both"):
            raise ConfigError("direction", f"must be to_server, to_client or both, not {rule.direction!r}")
        if rule.of not in ("reply", "push"):
            raise ConfigError("of", f"must be reply or push, not {rule.of!r}")
        _check_where(rule.where)

        def add() -> None:
            rule.since = 0 if cut else max(self._connections, default=0)
            self._rules.append(rule)
            if cut:
                self._cut(rule.where, reset=True)
            if rule.kind == "black hole":
                self._drop_queued(rule)

        self._call(add)
        return Fault(self, rule)

    def _end(self, rule: _Rule) -> None:
        with suppress(_Ended):
            self._call(partial(self._finish, (rule,)))

    def _call(self, function: Callable[[], T]) -> T:
        """Let the thread run a function; return what it returns."""
        if threading.current_thread() is self._thread:
            return function()
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001  # it is the caller's
                future.set_exception(error)

        with self._lock:
            if self._ended:
                raise _Ended("the fault proxy is closed")
            self._calls.append(run)
        self._wake()
        result = future.result(STOP_TIMEOUT)
        self._raise_error()
        return result

    def _wake(self) -> None:
        with suppress(OSError):  # full: it will wake anyway; closed: it has ended
            self._wake_in.send(b"w")

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._ended:
                due = self._pump_all(time.monotonic())
                self._update_interests()
                timeout = None if due is None else max(0.0, due - time.monotonic())
                for key, events in self._selector.select(timeout):
                    key.data(events)
        finally:
            with self._lock:
                self._ended = True
            self._run_calls(0)  # nobody waits in vain
            self._heal()
            for connection in list(self._connections.values()):
                self._close(connection)
            self._selector.close()
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # for a forked child that has not let go of it yet
            self._listener.close()
            self._wake_out.close()

    def _run_calls(self, _events: int) -> None:
        with suppress(BlockingIOError):
            while self._wake_out.recv(CHUNK):
                pass
        while self._calls:
            self._calls.popleft()()

    def _accept(self, _events: int) -> None:
        with suppress(BlockingIOError, ConnectionAbortedError):
            while True:
                client, _ = self._listener.accept()
                self._begin(client)

    def _begin(self, client: socket.socket) -> None:
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        target = self._target
        server = socket.socket(target.family, socket.SOCK_STREAM)
        server.setblocking(False)
        connection = _Connection(next(self._numbers), client, server, target.label)
        self._connections[connection.number] = connection
        if any(rule.kind == "refuse" and rule.concerns_new(connection, self._note) for rule in self._rules):
            self._refuse(connection)
            return
        try:
            if target.family != socket.AF_UNIX:
                server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server.connect(target.address)
        except BlockingIOError:
            connection.connecting = target.family != socket.AF_UNIX
            if not connection.connecting:  # a unix socket whose queue is full
                self._refuse(connection)
        except OSError:
            self._refuse(connection)

    def _refuse(self, connection: _Connection) -> None:
        self._refused += 1
        self._close(connection, reset=True)

    def _on_events(self, connection: _Connection, sock: socket.socket, events: int) -> None:
        if connection.closed:
            return
        incoming, outgoing = connection.pipes_of(sock)
        if events & selectors.EVENT_WRITE:
            outgoing.blocked = False
            if connection.connecting and sock is connection.server:
                connection.connecting = False
                if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    self._refuse(connection)
                    return
        if events & selectors.EVENT_READ:
            self._read(connection, incoming)

    def _read(self, connection: _Connection, pipe: _Pipe) -> None:
        try:
            data = pipe.source.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        now = time.monotonic()
        pipe.received += len(data)
        frames = pipe.framer.feed(data)
        for _, head in frames:
            self._note_frame(connection, pipe, head)
            if connection.closed:
                return
        if not data:
            pipe.source_ended = True
        if pipe.sink_ended:
            pipe.lost += len(data)
        elif self._rules_for(connection, pipe, "black hole"):
            self._swallow(pipe, len(data))
        elif data and self._frame_rules(connection, pipe):
            self._judge_frames(connection, pipe, data, frames, now)
        else:
            self._release_partial(connection, pipe, now)
            self._enqueue(connection, pipe, data, now)
            pipe.headless = pipe.framer.inside

    def _note_frame(self, connection: _Connection, pipe: _Pipe, head: bytes) -> None:
        """Count a complete command, reply or push; learn the client's name."""
        if pipe.direction == "to_client" and _is_push(head):
            pipe.pushes += 1
            return
        pipe.frames += 1
        if pipe.direction == "to_server":
            name = _name_in(head)
            if name is not None and name != connection.name:
                connection.name = name
                if any(rule.kind == "refuse" and rule.concerns_new(connection, self._note) for rule in self._rules):
                    self._refuse(connection)

    def _judge_frames(
        self, connection: _Connection, pipe: _Pipe, data: bytes, frames: list[tuple[int, bytes]], now: float
    ) -> None:
        """Queue complete frames one by one, as the rules that concern single ones want it."""
        start = 0
        for end, head in frames:
            piece, start = data[start:end], end
            if pipe.headless:  # its beginning went through before there was such a rule
                pipe.headless = False
                self._enqueue(connection, pipe, piece, now)
                continue
            frame = bytes(pipe.partial) + piece
            pipe.partial.clear()
            kind: Of = "push" if _is_push(head) else "reply"
            extra, keep = 0.0, True
            for rule in self._frame_rules(connection, pipe):
                if rule.of == kind:
                    rule.left -= 1
                    if rule.kind == "lose":
                        keep = False
                    elif rule.left == 0:
                        extra += rule.seconds
                    if rule.left == 0:
                        self._finish((rule,))
            if keep:
                self._enqueue(connection, pipe, frame, now, extra)
            else:
                pipe.lost += len(frame)
        if pipe.headless and start < len(data):
            self._enqueue(connection, pipe, data[start:], now)
        else:
            pipe.partial += data[start:]  # released by the next round if there is no such rule any longer

    def _release_partial(self, connection: _Connection, pipe: _Pipe, now: float) -> None:
        """Queue the beginning of a frame that was kept until it should be complete."""
        if pipe.partial:
            data = bytes(pipe.partial)
            pipe.partial.clear()
            self._enqueue(connection, pipe, data, now)
            pipe.headless = pipe.framer.inside

    def _enqueue(self, connection: _Connection, pipe: _Pipe, data: bytes, now: float, extra: float = 0.0) -> None:
        """Queue bytes; none stand for the end of the stream. What is queued waits for what is before it."""
        rules = self._rules_for(connection, pipe, "delay")
        delay = sum(rule.seconds + self._rng.uniform(0, rule.jitter) for rule in rules)
        pipe.queue.append((now + delay + extra, data))
        pipe.queued += len(data)

    def _swallow(self, pipe: _Pipe, number: int) -> None:
        pipe.lost += number
        pipe.holed = True

    def _drop_queued(self, rule: _Rule) -> None:
        for connection in self._connections.values():
            for pipe in connection.pipes:
                if (pipe.queue or pipe.partial) and rule.concerns(connection, pipe.direction, self._note):
                    self._swallow(pipe, pipe.queued + len(pipe.partial))
                    pipe.empty()

    # -- delivering

    def _pump_all(self, now: float) -> float | None:
        """Deliver what may be delivered; return when there is more to do, None if that is not known."""
        due: float | None = None
        for connection in list(self._connections.values()):
            for pipe in connection.pipes:
                if pipe.partial and not self._frame_rules(connection, pipe):
                    self._release_partial(connection, pipe, now)
                if pipe.queue:
                    next_due = self._pump(connection, pipe, now)
                    if next_due is not None:
                        due = next_due if due is None else min(due, next_due)
        return due

    def _pump(self, connection: _Connection, pipe: _Pipe, now: float) -> float | None:
        """Deliver what one direction may deliver; return when there is more to do."""
        if connection.connecting or self._rules_for(connection, pipe, "hold"):
            return None
        rate = min((rule.rate for rule in self._rules_for(connection, pipe, "throttle")), default=0.0)
        while pipe.queue and not pipe.blocked and not connection.closed:
            ready_at, data = pipe.queue[0]
            due = max(ready_at, pipe.next_free) if rate else ready_at
            if due > now:
                return due
            self._deliver(connection, pipe, data, rate, now)
        return None

    def _deliver(self, connection: _Connection, pipe: _Pipe, data: bytes, rate: float, now: float) -> None:
        """Deliver the first of what waits, or as much of it as may go now."""
        if not data:
            self._end_sink(connection, pipe)
            return
        limits = self._rules_for(connection, pipe, "cut after")
        size = min([len(data), *(rule.left_of(connection) for rule in limits)])
        if rate:
            size = min(size, max(1, int(rate * SLICE_SECONDS)))
        try:
            sent = pipe.sink.send(data[:size]) if size else 0
        except BlockingIOError:
            pipe.blocked = True
            return
        except OSError:
            self._end_sink(connection, pipe)
            return
        pipe.sent(sent, now, rate)
        for rule in limits:
            rule.spend(connection, sent)
        if any(rule.left_of(connection) == 0 for rule in limits):
            self._close(connection)

    def _end_sink(self, connection: _Connection, pipe: _Pipe) -> None:
        """Pass on that the source has ended, or note that the sink is gone. Both ways ended: close."""
        pipe.sink_ended = True
        pipe.lost += pipe.queued
        pipe.empty()
        with suppress(OSError):
            pipe.sink.shutdown(socket.SHUT_WR)
        if all(each.sink_ended for each in connection.pipes):
            self._close(connection)

    def _update_interests(self) -> None:
        """Tell the selector what each socket is waited for."""
        for connection in self._connections.values():
            for sock in (connection.client, connection.server):
                incoming, outgoing = connection.pipes_of(sock)
                events = 0
                if not incoming.source_ended and incoming.queued < self._buffer_bytes:
                    events |= selectors.EVENT_READ
                if outgoing.blocked:
                    events |= selectors.EVENT_WRITE
                if connection.connecting and sock is connection.server:
                    events = selectors.EVENT_WRITE
                if events == connection.interests.get(sock, 0):
                    continue
                if sock in connection.interests:
                    self._selector.unregister(sock)
                    del connection.interests[sock]
                if events:
                    self._selector.register(sock, events, partial(self._on_events, connection, sock))
                    connection.interests[sock] = events

    def _close(self, connection: _Connection, *, reset: bool = False) -> None:
        if connection.closed:
            return
        connection.closed = True
        del self._connections[connection.number]
        for sock in connection.interests:
            self._selector.unregister(sock)
        connection.interests.clear()
        for sock in (connection.client, connection.server):
            with suppress(OSError):
                if reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                else:
                    # Closed for the other side even if a forked child holds a copy of the socket.
                    sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        self._closed_connections.append(connection.snapshot())
        for rule in self._rules:
            rule.spent.pop(connection.number, None)

    # -- rules

    def _rules_for(self, connection: _Connection, pipe: _Pipe, kind: str) -> list[_Rule]:
        """Return the rules of a kind that concern a direction of a connection."""
        return [
            rule for rule in self._rules if rule.kind == kind and rule.concerns(connection, pipe.direction, self._note)
        ]

    def _frame_rules(self, connection: _Connection, pipe: _Pipe) -> list[_Rule]:
        """Return the rules about single replies or pushes that concern a direction of a connection."""
        if pipe.direction == "to_server" or not pipe.framer.sound:
            return []
        return self._rules_for(connection, pipe, "lose") + self._rules_for(connection, pipe, "delay one")

    def _note(self, error: BaseException) -> None:
        """Keep what a user's function raised until a caller can be told."""
        self._error = self._error or error

    def _cut(self, where: Where, *, reset: bool) -> int:
        found = [each for each in self._connections.values() if _selects(where, each.snapshot())]
        for connection in found:
            self._close(connection, reset=reset)
        return len(found)

    def _heal(self, where: Where = None) -> None:
        self._finish([rule for rule in self._rules if where is None or rule.where == where])

    def _finish(self, rules: Collection[_Rule]) -> None:
        """End rules, with what the end of each brings about."""
        now = time.monotonic()
        for rule in rules:
            if not rule.active:
                continue
            rule.active = False
            self._rules.remove(rule)
            if rule.kind not in ("delay", "black hole"):
                continue
            for connection in list(self._connections.values()):
                for pipe in connection.pipes:
                    if not rule.concerns(connection, pipe.direction, self._note):
                        continue
                    if rule.kind == "delay":
                        pipe.queue = deque((min(ready_at, now), data) for ready_at, data in pipe.queue)
                    elif pipe.holed:
                        self._close(connection, reset=True)
                        break


# --- inside -----------------------------------------------------------------------------------------------------------


class _Ended(RuntimeError):
    """The proxy is closed."""


@dataclass(frozen=True, slots=True)
class _Target:
    """Where a URL leads.

    Attributes:
        url: the URL.
        family: of the socket.
        address: what to connect to.
        label: the same for people, without password.
    """

    url: str
    family: socket.AddressFamily
    address: tuple[str, int] | str
    label: str

    @classmethod
    def of(cls, url: str) -> _Target:
        """Read a URL.

        Raises:
            ConfigError: it is no redis:// or unix:// URL, or its host is not known.
        """
        try:
            parts = urlsplit(url)
            scheme, host, port = parts.scheme, parts.hostname or "localhost", parts.port or 6379
        except (AttributeError, TypeError, ValueError):
            raise ConfigError("upstream", "is not a valid URL") from None
        if scheme == "unix" and parts.path:
            path = unquote(parts.path)
            return cls(url, socket.AF_UNIX, path, path)
        if scheme != "redis":
            raise ConfigError("upstream", "must be a URL like redis://host:port/0 or unix:///path/to/socket")
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        except OSError as error:
            raise ConfigError("upstream", f"host {host!r} is not known: {error}") from None
        return cls(url, family, (str(address[0]), int(address[1])), f"{host}:{port}")

    def url_through(self, port: int) -> str:
        """Return the URL that leads to the proxy, with the same user, password, database and options."""
        parts = urlsplit(self.url)
        user = parts.netloc.rpartition("@")[0]
        netloc = f"{user}@127.0.0.1:{port}" if user else f"127.0.0.1:{port}"
        path = "" if parts.scheme == "unix" else parts.path
        return urlunsplit(("redis", netloc, path, parts.query, ""))


@dataclass(eq=False, slots=True)
class _Rule:
    """A fault as the thread sees it.

    Attributes:
        kind: which one.
        direction: of the bytes that it concerns.
        where: the connections that it concerns.
        seconds, jitter: of a delay.
        rate: bytes per second of a throttle.
        left: frames, or bytes per connection, until it acts or ends; negative for no end.
        of: kind of frames.
        since: number of the last connection that was there before it.
        spent: bytes delivered under it, by connection.
        active: whether it has not ended.
    """

    kind: str
    direction: Direction
    where: Where
    seconds: float = 0.0
    jitter: float = 0.0
    rate: float = 0.0
    left: int = 0
    of: Of = "reply"
    since: int = 0
    spent: dict[int, int] = field(default_factory=dict)
    active: bool = True

    def concerns(self, connection: _Connection, direction: Direction, note: Callable[[BaseException], None]) -> bool:
        """Tell whether it concerns a direction of a connection. What a user's function raises counts as a no."""
        if self.direction not in ("both", direction):
            return False
        if self.where is None:
            return True
        if isinstance(self.where, str):
            return fnmatchcase(connection.name, self.where)
        try:
            return bool(self.where(connection.snapshot()))
        except BaseException as error:  # noqa: BLE001  # it is the caller's, and must not end the thread
            note(error)
            return False

    def concerns_new(self, connection: _Connection, note: Callable[[BaseException], None]) -> bool:
        """Tell whether it concerns a connection that was made after it."""
        return connection.number > self.since and self.concerns(connection, "both", note)

    def left_of(self, connection: _Connection) -> int:
        return self.left - self.spent.get(connection.number, 0)

    def spend(self, connection: _Connection, number: int) -> None:
        self.spent[connection.number] = self.spent.get(connection.number, 0) + number


class _Pipe:
    """One direction of a connection.

    Attributes:
        queue: bytes with the moment from which they may be delivered; none stand for the end of the stream.
        queued: bytes in the queue.
        partial: the beginning of a frame, kept back because a rule concerns whole ones.
        headless: the frame that is coming in has been queued in part already.
        blocked: the sink takes nothing at present.
        source_ended, sink_ended: nothing more will come from, or can go to, there.
        holed: bytes were swallowed, so that nothing may ever follow them.
        next_free: when a throttle allows more.
    """

    def __init__(self, direction: Direction, source: socket.socket, sink: socket.socket) -> None:
        self.direction: Final = direction
        self.source = source
        self.sink = sink
        self.queue: deque[tuple[float, bytes]] = deque()
        self.queued = 0
        self.partial = bytearray()
        self.framer = Framer()
        self.headless = False
        self.blocked = self.source_ended = self.sink_ended = self.holed = False
        self.next_free = 0.0
        self.received = self.delivered = self.lost = self.frames = self.pushes = 0

    def sent(self, number: int, now: float, rate: float) -> None:
        """Take bytes that were delivered from the queue."""
        ready_at, data = self.queue.popleft()
        if number < len(data):
            self.queue.appendleft((ready_at, data[number:]))
        self.queued -= number
        self.delivered += number
        if rate:
            self.next_free = max(now, self.next_free) + number / rate

    def empty(self) -> None:
        """Forget what waits."""
        self.queue.clear()
        self.queued = 0
        self.partial.clear()

    def traffic(self) -> Traffic:
        return Traffic(self.received, self.delivered, self.lost, self.frames, self.pushes)


class _Connection:
    """A client's connection and the one to the server that belongs to it."""

    def __init__(self, number: int, client: socket.socket, server: socket.socket, upstream: str) -> None:
        self.number = number
        self.name = ""
        self.client = client
        self.server = server
        self.upstream = upstream
        self.connecting = False
        self.closed = False
        self.to_server = _Pipe("to_server", client, server)
        self.to_client = _Pipe("to_client", server, client)
        self.pipes = (self.to_server, self.to_client)
        self.interests: dict[socket.socket, int] = {}

    def pipes_of(self, sock: socket.socket) -> tuple[_Pipe, _Pipe]:
        """Return the pipe that reads from a socket, and the one that writes to it."""
        return (self.to_server, self.to_client) if sock is self.client else (self.to_client, self.to_server)

    def snapshot(self) -> ProxiedConnection:
        return ProxiedConnection(
            self.number, self.name, self.upstream, not self.closed, self.to_server.traffic(), self.to_client.traffic()
        )


class Framer:
    """Finds where the values of a RESP stream end (RESP2, RESP3, inline commands), however it is cut into pieces.

    Attributes:
        inside: whether a value has begun that has not ended.
        sound: False once something came that is not RESP; no ends are found from then on.
    """

    def __init__(self) -> None:
        self.inside = False
        self.sound = True
        self._line = bytearray()  # the beginning of a header or of a simple value
        self._skip = 0  # bytes of a bulk string, with its line end, that are still to come
        self._open = 1  # values that are still to come, until the present one is complete
        self._head = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Take the next bytes; return for each value that ends in them where, and how it began."""
        ends: list[tuple[int, bytes]] = []
        if self.sound:
            try:
                self._feed(data, ends)
            except ValueError:
                self.sound = False
        return ends

    def _feed(self, data: bytes, ends: list[tuple[int, bytes]]) -> None:
        position = start = 0
        while position < len(data):
            self.inside = True
            if self._skip:
                taken = min(self._skip, len(data) - position)
                self._skip -= taken
                position += taken
                complete = self._skip == 0
            else:
                end = data.find(b"\n", position) + 1
                self._line += data[position : end or len(data)]
                position = end or len(data)
                if len(self._line) > CHUNK:
                    raise ValueError("an endless line")
                complete = end > 0 and self._header()
            if not complete:
                continue
            self._open -= 1
            if self._open == 0:
                self._head += data[start : min(position, start + HEAD_BYTES)]
                ends.append((position, bytes(self._head[:HEAD_BYTES])))
                self._head.clear()
                start, self._open, self.inside = position, 1, False
        if len(self._head) < HEAD_BYTES:
            self._head += data[start : start + HEAD_BYTES]

    def _header(self) -> bool:
        """Take a complete line; tell whether it is a whole value, or stands for one that has no items."""
        line = bytes(self._line)
        self._line.clear()
        kind = line[:1]
        if kind in b"$!=":
            length = int(line[1:])
            if length < 0:
                return True
            self._skip = length + 2
            return False
        if kind in b"*~>%|":
            items = max(0, int(line[1:]))
            if kind in b"%|":
                items *= 2
            self._open += items
            # Attributes precede the value that counts.
            return kind != b"|"
        return True


def _is_push(head: bytes) -> bool:
    return head[:1] == b">" or head.startswith(_PUBSUB)


def _name_in(head: bytes) -> str | None:
    """Return the client name that a command sets, None if it sets none."""
    words = list(_words(head))
    verbs = [word.upper() for word in words[:2]]
    if verbs[:1] == [b"RESET"]:
        return ""
    name = None
    if verbs == [b"CLIENT", b"SETNAME"] and len(words) > 2:
        name = words[2]
    elif verbs[:1] == [b"HELLO"]:
        at = 2
        while at < len(words):
            option = words[at].upper()
            if option == b"SETNAME" and at + 1 < len(words):
                name = words[at + 1]
            at += 3 if option == b"AUTH" else 2
    return None if name is None else name.decode("utf-8", "replace")


def _words(head: bytes) -> Iterator[bytes]:
    """Yield the words of a command, as far as they are there."""
    if head[:1] != b"*":
        yield from head.split()
        return
    position = head.find(b"\n") + 1
    while position and head[position : position + 1] == b"$":
        end = head.find(b"\n", position)
        if end < 0:
            return
        length = int(head[position + 1 : end])
        word = head[end + 1 : end + 1 + length]
        if len(word) < length:
            return
        yield word
        position = end + length + 3


def _selects(where: Where, connection: ProxiedConnection) -> bool:
    if where is None:
        return True
    return fnmatchcase(connection.name, where) if isinstance(where, str) else bool(where(connection))


def _check_where(where: object) -> None:
    if not (where is None or isinstance(where, str) or callable(where)):
        raise ConfigError("where", f"must be a glob, a function or None, not {type(where).__name__}")


def _amount(seconds: float) -> float:
    if not 0 <= seconds < float("inf"):
        raise ConfigError("seconds", f"must be 0 or more, not {seconds!r}")
    return seconds


def _positive(number: int) -> int:
    if number < 1:
        raise ConfigError("number", f"must be 1 or more, not {number!r}")
    return number


_proxies: weakref.WeakSet[FaultProxy] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """Let go of the parent's sockets: the port must be free, and connections closed, when the parent says so."""
    for proxy in list(_proxies):
        proxy._ended = True  # noqa: SLF001
        for connection in proxy._connections.values():  # noqa: SLF001
            connection.client.close()
            connection.server.close()
        for sock in (proxy._listener, proxy._wake_in, proxy._wake_out):  # noqa: SLF001
            sock.close()
        proxy._selector.close()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
