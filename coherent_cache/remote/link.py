"""The subscriber's own connection: no reconnects, no retries, everything that comes in is seen, in order (rule P3).

Made by redis-py (TLS, authentication, RESP version), then read without it: a socket is read in large pieces and parsed
by hiredis. Connections that are no sockets (fakeredis) are read through redis-py.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from typing import Any, Final, NamedTuple, Protocol

import hiredis
import redis
from redis.connection import AbstractConnection

from coherent_cache.remote.connection import ReplyError
from coherent_cache.remote.topology import server_of

READ_BYTES: Final = 256 * 1024
"""Bytes read from the socket at once."""

WAKE_SECONDS: Final = 0.05
"""How often a connection that cannot be woken looks whether it should end."""


class Item(NamedTuple):
    """Something that came in.

    Attributes:
        kind: ``message``, ``subscribe``, ``unsubscribe``, ``reply``, or ``error``.
        channel: the channel, for the first three.
        data: the message, the reply, or the ReplyError.
    """

    kind: str
    channel: bytes
    data: Any


class LinkLost(Exception):
    """The connection ended."""


class Link(Protocol):
    """A connection of the subscriber."""

    server: str

    def send(self, packed: bytes) -> None:
        """Send a packed command.

        Raises:
            LinkLost: the connection ended.
        """

    def receive(self, timeout: float, *, likely: bool = False) -> list[Item]:
        """Return what has come in, at the latest after ``timeout`` seconds, or earlier and empty if woken.

        Args:
            timeout: seconds.
            likely: something has come already, so do not ask first; if not, return at once.

        Raises:
            LinkLost: the connection ended.
        """

    def wake(self) -> None:
        """Let :meth:`receive` return soon. The only method for other threads."""

    def close(self) -> None:
        """Close the connection."""


def open_link(connection: AbstractConnection) -> Link:
    """Take over a connected connection."""
    sock = getattr(connection, "_sock", None)
    return SocketLink(connection, sock) if isinstance(sock, socket.socket) else ConnectionLink(connection)


class SocketLink:
    """A link over a socket, plain or TLS."""

    def __init__(self, connection: AbstractConnection, sock: socket.socket) -> None:
        """Take over a connected connection and its socket."""
        self.server = server_of(connection)
        self._connection = connection
        self._sock = sock
        self._send_timeout = sock.gettimeout()
        sock.setblocking(False)
        self._reader = hiredis.Reader(notEnoughData=Ellipsis, replyError=ReplyError)
        self._pending = sock.pending if isinstance(sock, ssl.SSLSocket) else lambda: 0
        self._wake_in, self._wake_out = socket.socketpair()
        for end in (self._wake_in, self._wake_out):
            end.setblocking(False)
        self._descriptor = sock.fileno()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._poll.register(self._wake_out, select.POLLIN)

    def send(self, packed: bytes) -> None:
        """Send a packed command."""
        try:
            self._sock.settimeout(self._send_timeout)
            self._sock.sendall(packed)
            self._sock.setblocking(False)
        except OSError as error:
            raise LinkLost(f"sending failed: {error}") from error

    def receive(self, timeout: float, *, likely: bool = False) -> list[Item]:
        """Return what has come in; see :class:`Link`."""
        if not likely and not self._pending():
            ready = self._poll.poll(max(0.0, timeout) * 1000)
            if not ready:
                return []
            if len(ready) > 1 or ready[0][0] != self._descriptor:
                self._drain()
                if len(ready) == 1:
                    return []
        try:
            data = self._sock.recv(READ_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError):
            return []
        except OSError as error:
            raise LinkLost(f"receiving failed: {error}") from error
        if not data:
            raise LinkLost("closed by the server")
        items = []
        try:
            self._reader.feed(data)
            while (raw := self._reader.gets(False)) is not Ellipsis:
                items.append(_item(raw))
        except (hiredis.HiredisError, TypeError) as error:  # TypeError: a map in which a list is a key
            raise LinkLost(f"not the Redis protocol: {error}") from error
        return items

    def wake(self) -> None:
        """Let :meth:`receive` return."""
        with contextlib.suppress(OSError):  # full: it will return anyway; closed: it has ended
            self._wake_in.send(b"w")

    def _drain(self) -> None:
        with contextlib.suppress(OSError):
            while self._wake_out.recv(64):
                pass

    def close(self) -> None:
        """Close the socket. In a forked child only the child's copy is closed, without a shutdown (P13)."""
        self._connection.disconnect()
        self._wake_in.close()
        self._wake_out.close()


class ConnectionLink:
    """A link over any connection of redis-py."""

    def __init__(self, connection: AbstractConnection) -> None:
        """Take over a connected connection."""
        self.server = server_of(connection)
        self._connection = connection

    def send(self, packed: bytes) -> None:
        """Send a packed command."""
        try:
            self._connection.send_packed_command([packed])
        except (redis.RedisError, OSError) as error:
            raise LinkLost(f"sending failed: {error}") from error

    def receive(self, timeout: float, *, likely: bool = False) -> list[Item]:
        """Return what has come in; see :class:`Link`."""
        items: list[Item] = []
        try:
            wait = 0.0 if likely else min(timeout, WAKE_SECONDS)
            while self._connection.is_connected and self._connection.can_read(max(0.0, wait)):
                items.append(_item(self._read()))
                wait = 0.0
            if not self._connection.is_connected:
                raise LinkLost("closed")
        except (redis.RedisError, OSError) as error:
            raise LinkLost(f"receiving failed: {error}") from error
        return items

    def _read(self) -> Any:
        try:
            return self._connection.read_response(disable_decoding=True, push_request=True)
        except redis.ConnectionError:
            raise
        except redis.ResponseError as error:
            return ReplyError(str(error))

    def wake(self) -> None:
        """Nothing to do: :meth:`receive` returns soon anyway."""

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()


_new_tuple: Final = tuple.__new__

_KINDS: Final = {
    b"message": "message",
    b"smessage": "message",
    b"subscribe": "subscribe",
    b"ssubscribe": "subscribe",
    b"unsubscribe": "unsubscribe",
    b"sunsubscribe": "unsubscribe",
}


def _item(raw: Any) -> Item:
    """Tell what came in by its form.

    Raises:
        LinkLost: a message, or what confirms a subscription, holds what no server sends there.
    """
    if isinstance(raw, list) and len(raw) == 3:
        word, channel, data = raw
        kind = _KINDS.get(word) if type(word) is bytes else None
        if kind is not None:
            if type(channel) is not bytes or (type(data) is not bytes and kind == "message"):
                raise LinkLost(f"a {kind} of other types: {type(channel).__name__}, {type(data).__name__}")
            return _new_tuple(Item, (kind, channel, data))  # as Item(...), in a third of the time: for each message
    if isinstance(raw, ReplyError):
        return Item("error", b"", raw)
    return Item("reply", b"", raw)
