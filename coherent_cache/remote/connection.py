"""Connections for commands: made by redis-py, then driven without it.

redis-py makes the socket (TLS, unix sockets, authentication, RESP version). After that a command is one ``sendall`` and
as few ``recv`` as its replies need, parsed by hiredis: no retries, no reconnects, nothing decoded. What is no socket
(fakeredis) is driven through redis-py.
"""

from __future__ import annotations

import re
import select
import socket
from typing import Any, Final, Protocol

import hiredis
import redis
from redis.connection import AbstractConnection

from coherent_cache.remote.topology import Endpoint, server_of

READ_BYTES: Final = 64 * 1024
"""Bytes read from the socket at once."""

_CODES: Final = {
    redis.exceptions.NoScriptError: "NOSCRIPT",
    redis.exceptions.OutOfMemoryError: "OOM",
    redis.exceptions.ReadOnlyError: "READONLY",
    redis.exceptions.NoPermissionError: "NOPERM",
    redis.exceptions.ExecAbortError: "EXECABORT",
}
"""Codes that redis-py turns into classes; those connections that it parses need them back."""


_SCRIPT_PLACE: Final = re.compile(r"^@user_script: ?\d+: -?")


class ReplyError(Exception):
    """An error that Redis answered.

    Attributes:
        code: its first word, e.g. ``NOSCRIPT``.
    """

    def __init__(self, text: str) -> None:
        # Redis 6 puts the place in the script before the code of an error that a command inside it made.
        text = _SCRIPT_PLACE.sub("", text)
        super().__init__(text)
        self.code = text.partition(" ")[0].removeprefix("-")


def pack(command: tuple[Any, ...]) -> bytes:
    """Write a command, given as its words, in Redis' protocol."""
    packed: bytes = hiredis.pack_command(command)
    return packed


class ConnectionLost(Exception):
    """The connection ended, or did not answer in time. If commands were sent, it is unknown whether they were executed.

    Attributes:
        sent: whether anything of them was sent, perhaps.
    """

    def __init__(self, what: str, *, sent: bool = True) -> None:
        """Keep what happened."""
        super().__init__(what)
        self.sent = sent


class CommandConnection(Protocol):
    """A connection for commands."""

    server: str

    def exchange(self, packed: bytes, replies: int) -> list[Any]:
        """Send packed commands, return that many replies; error replies are returned as :class:`ReplyError`.

        Raises:
            ConnectionLost: the connection ended, or did not answer in time; it must be closed.
        """

    def is_quiet(self) -> bool:
        """Tell whether it is open and nothing unexpected has come in."""

    def close(self) -> None:
        """Close it; a second call does nothing."""


def connect(endpoint: Endpoint, *, name: str) -> CommandConnection:
    """Connect.

    Raises:
        redis.RedisError, OSError: it could not be connected.
    """
    connection = endpoint.connect(name=name)
    sock = getattr(connection, "_sock", None)
    return SocketConnection(connection, sock) if isinstance(sock, socket.socket) else DrivenConnection(connection)


class SocketConnection:
    """A connection over a socket, plain or TLS."""

    __slots__ = ("_connection", "_poll", "_reader", "_recv", "_send", "server")

    def __init__(self, connection: AbstractConnection, sock: socket.socket) -> None:
        """Take over a connected connection and its socket."""
        self.server = server_of(connection)
        self._connection = connection  # keeps the socket, and closes it
        self._reader = hiredis.Reader(notEnoughData=Ellipsis, replyError=ReplyError)
        self._send, self._recv = sock.sendall, sock.recv
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def exchange(self, packed: bytes, replies: int) -> list[Any]:
        """Send packed commands, return that many replies; see :class:`CommandConnection`."""
        gets, received = self._reader.gets, []
        try:
            self._send(packed)
            while True:
                data = self._recv(READ_BYTES)
                if not data:
                    raise ConnectionLost("closed by the server")
                self._reader.feed(data)
                while (reply := gets(False)) is not Ellipsis:  # bytes, not text
                    if type(reply) is not hiredis.PushNotification:
                        received.append(reply)
                if len(received) >= replies:
                    return received
        except TimeoutError:
            raise ConnectionLost("no answer in time") from None
        except (OSError, hiredis.HiredisError) as error:
            raise ConnectionLost(str(error)) from error

    def is_quiet(self) -> bool:
        """Tell whether it is open and nothing unexpected has come in."""
        return not self._poll.poll(0)

    def close(self) -> None:
        """Close it; in a forked child only the child's copy, without a shutdown (P13)."""
        self._connection.disconnect()


class DrivenConnection:
    """A connection that redis-py reads and writes."""

    def __init__(self, connection: AbstractConnection) -> None:
        """Take over a connected connection."""
        self.server = server_of(connection)
        self._connection = connection

    def exchange(self, packed: bytes, replies: int) -> list[Any]:
        """Send packed commands, return that many replies; see :class:`CommandConnection`."""
        try:
            self._connection.send_packed_command([packed])
            return [self._read() for _ in range(replies)]
        except (redis.RedisError, OSError) as error:
            raise ConnectionLost(str(error)) from error

    def _read(self) -> Any:
        try:
            return self._connection.read_response(disable_decoding=True)
        except redis.ConnectionError:
            raise
        except redis.ResponseError as error:
            code = _CODES.get(type(error))
            return ReplyError(f"{code} {error}" if code else str(error))

    def is_quiet(self) -> bool:
        """Tell whether it is open and nothing unexpected has come in."""
        try:
            return self._connection.is_connected and not self._connection.can_read(0)
        except (redis.RedisError, OSError):
            return False

    def close(self) -> None:
        """Close it."""
        self._connection.disconnect()
