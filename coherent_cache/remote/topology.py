"""Where Redis is: a URL or a client becomes an endpoint that makes connections the way this package needs them.

Connections are redis-py's own (TLS, unix sockets, authentication, RESP2 and RESP3 are its business), but with nothing
done behind our back: no retries (redis-py's default executed one timed-out script six times, review A8), no silent
reconnects, explicit time-outs, and each one knows which server process it leads to (P16).
"""

from __future__ import annotations

import inspect
import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import urlsplit
from weakref import WeakSet

import redis
import redis.asyncio.connection as asynchronous
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.retry import Retry

try:
    from redis.maint_notifications import MaintNotificationsConfig
except ImportError:  # redis-py < 6.4
    MaintNotificationsConfig = None  # type: ignore[assignment,misc]

from coherent_cache.config import Settings
from coherent_cache.errors import ConfigError
from coherent_cache.remote.embedded import embedded_url
from coherent_cache.remote.memory import fake_connection_class, memory_connection

_KEPT_KWARGS: Final = frozenset(
    {
        "host", "port", "path", "db", "username", "password", "credential_provider", "socket_timeout",
        "socket_connect_timeout", "socket_keepalive", "socket_keepalive_options", "socket_type", "redis_connect_func",
        "protocol", "server", "version", "server_type", "lua_modules",
    }
)  # fmt: skip
"""Connection options that are taken over from a URL or client, besides all that begin with ``ssl_``."""

_SERVER: Final = "coherent_cache_server"
"""Attribute that a connection's server is noted under."""

_ASYNCHRONOUS: Final = {
    Connection: asynchronous.Connection,
    SSLConnection: asynchronous.SSLConnection,
    UnixDomainSocketConnection: asynchronous.UnixDomainSocketConnection,
}
"""redis-py's classes for threads, and the same for event loops."""

_SYNCHRONOUS: Final = {cls: counterpart for counterpart, cls in _ASYNCHRONOUS.items()}

_LATER: Final = ("redis+sentinel", "redis+cluster")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A Redis server to connect to.

    Attributes:
        connection_class: redis-py's class for it.
        kwargs: its arguments.
        database: number of the database.
        description: where it is, for messages: never with user or password.
        note: what the user should know about a server that was started for them; empty if nothing.
        in_memory: whether it is a fakeredis of this process: it answers at once.
        introduced: whether the user has a function of their own that introduces connections.
    """

    connection_class: type[AbstractConnection]
    kwargs: dict[str, Any] = field(repr=False)  # there may be a password in it
    database: int
    description: str
    note: str = ""
    in_memory: bool = False
    introduced: bool = False

    def connect(self, *, name: str, protocol: int | None = None) -> AbstractConnection:
        """Make a connected, authenticated connection that knows its server.

        Args:
            name: client name, shown by CLIENT LIST.
            protocol: RESP version, if another than the endpoint's.

        Raises:
            redis.RedisError: it could not be connected.
        """
        connection = self.make(name=name, protocol=protocol)
        connection.connect()
        return connection

    def make(self, *, name: str, protocol: int | None = None) -> AbstractConnection:
        """Make a connection that is not connected yet; see :meth:`connect`."""
        kwargs = self.kwargs | {"client_name": name}
        if protocol is not None:
            kwargs["protocol"] = protocol
        connection = self.connection_class(**kwargs)
        _made.add(connection)
        return connection

    @property
    def has_user(self) -> bool:
        """Whether it is a user's own name that it connects by, whose rights may be limited."""
        return bool(self.kwargs.get("username") or self.kwargs.get("credential_provider"))

    def check_asynchronous(self) -> None:
        """Check that event loops can connect to it.

        Raises:
            ConfigError: they cannot.
        """
        if self.in_memory:
            return
        if self.introduced:
            raise ConfigError("url", "a redis_connect_func cannot serve threads and event loops alike; give a URL")
        cls = _ASYNCHRONOUS.get(self.connection_class)
        if cls is None:
            raise ConfigError("url", f"redis.asyncio has no counterpart of {self.connection_class.__qualname__}")
        known = inspect.signature(cls).parameters
        for option, value in self.kwargs.items():
            if option.startswith("ssl_") and option not in known and value:
                raise ConfigError("url", f"redis.asyncio knows no option {option}")

    def make_asynchronous(self, *, name: str) -> asynchronous.AbstractConnection:
        """Make a connection for the running event loop that is not connected yet.

        Its server is not noted; :func:`run_id_of` finds it in the answer to ``INFO server``.
        """
        kwargs = self.kwargs | {"client_name": name, "retry": AsyncRetry(NoBackoff(), 0)}
        del kwargs["redis_connect_func"]
        if "maint_notifications_config" not in inspect.signature(asynchronous.AbstractConnection).parameters:
            kwargs.pop("maint_notifications_config", None)
        cls: type[asynchronous.AbstractConnection] = _ASYNCHRONOUS[self.connection_class]
        known = inspect.signature(cls).parameters
        # A client has all TLS options, most of them at their defaults; see check_asynchronous() for the others.
        return cls(**{name: value for name, value in kwargs.items() if name[:4] != "ssl_" or name in known})


_made: Final[WeakSet[AbstractConnection]] = WeakSet()


def _close_inherited_sockets() -> None:
    """In a forked child: close its copies of the parent's sockets, without a shutdown (P13).

    A copy that stays open keeps the connection open when the parent dies, and nobody reads it any more.
    """
    for connection in list(_made):
        sock = getattr(connection, "_sock", None)
        if isinstance(sock, socket.socket):
            sock.close()
    _made.clear()


os.register_at_fork(after_in_child=_close_inherited_sockets)


def resolve(source: object, settings: Settings) -> Endpoint:
    """Find out where Redis is.

    Args:
        source: a URL (``redis://``, ``rediss://``, ``unix://``, ``memory://name``, ``embedded://name``), or a client
            of redis-py or fakeredis, synchronous or asyncio's, of which the options are taken and no connection.
        settings: settings of the instance.

    Raises:
        ConfigError: the source is neither, or of a kind that is not supported.
    """
    if isinstance(source, str):
        return _from_url(source, settings)
    if isinstance(source, redis.Redis | redis.asyncio.Redis):
        pool = source.connection_pool
        cls, kwargs = _synchronous(pool.connection_class), dict(pool.connection_kwargs)
        if "connection_pool" in kwargs or "service_name" in vars(pool):
            raise ConfigError("url", "a Sentinel-managed client is not supported yet; give the master's URL")
        return _endpoint(cls, kwargs, settings)
    if isinstance(source, redis.RedisCluster | redis.asyncio.RedisCluster):
        raise ConfigError("url", "Redis Cluster is not supported yet; give a single server's URL or client")
    kind = f"{type(source).__module__}.{type(source).__name__}"
    raise ConfigError("url", f"must be a URL or a client of redis-py, not {kind}")


def _synchronous(cls: type[Any]) -> type[AbstractConnection]:
    """Return the class of connections for threads that goes with a client's class."""
    if issubclass(cls, AbstractConnection):
        return cls
    if cls in _SYNCHRONOUS:
        return _SYNCHRONOUS[cls]
    if cls.__module__.startswith("fakeredis."):
        return fake_connection_class()
    raise ConfigError("url", f"there is no counterpart for threads of the client's {cls.__qualname__}")


def _from_url(url: str, settings: Settings) -> Endpoint:
    scheme = url.partition("://")[0]
    if scheme in ("memory", "embedded"):
        name = url.removeprefix(f"{scheme}://") or "default"
        return _in_memory(name, settings) if scheme == "memory" else _embedded(name, settings)
    if scheme in _LATER:
        raise ConfigError("url", f"{scheme}:// is not supported yet; give a single server's redis:// URL")
    if scheme not in ("redis", "rediss", "unix"):
        # A URL may hold a password: only its scheme is shown, and only if it looks like one.
        shown = repr(scheme) if "://" in url and re.fullmatch(r"[a-zA-Z][a-zA-Z0-9+.-]{0,30}", scheme) else "this"
        raise ConfigError(
            "url",
            f"{shown} is no known scheme; use redis://host:port/db, rediss://, unix:///path/to/socket, "
            "memory://name or embedded://",
        )
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # raises for a port that is no number
        kwargs = parse_url(url)
    except ValueError as error:
        raise ConfigError("url", f"is not valid: {_harmless(error)}") from None
    # redis-py ignores or joins what is no number, and would use another database.
    if (scheme != "unix" and not re.fullmatch(r"/?\d*/?", parts.path)) or kwargs.get("db", 0) < 0:
        raise ConfigError("url", "the path of a redis:// URL is the number of a database, as in redis://host:6379/0")
    cls = kwargs.pop("connection_class", Connection)
    if scheme == "unix" and "path" not in kwargs:
        raise ConfigError("url", "a unix:// URL needs the path of a socket: unix:///path/to/socket")
    return _endpoint(cls, kwargs, settings)


def _harmless(error: ValueError) -> str:
    text = str(error)
    return text if "Invalid value for" in text or "Port out of range" in text else "malformed URL"


def _in_memory(name: str, settings: Settings) -> Endpoint:
    cls, kwargs = memory_connection(name)
    endpoint = _endpoint(cls, kwargs | {"protocol": 2}, settings)
    return replace(endpoint, description=f"memory://{name}")


def _embedded(name: str, settings: Settings) -> Endpoint:
    server = embedded_url(name)
    endpoint = _from_url(server.url, settings)
    note = f"{server.kind} {server.version}"
    return replace(endpoint, description=f"embedded://{name}", note=note)


def _endpoint(cls: type[AbstractConnection], kwargs: dict[str, Any], settings: Settings) -> Endpoint:
    kept = {name: value for name, value in kwargs.items() if name in _KEPT_KWARGS or name.startswith("ssl_")}
    for option in ("socket_timeout", "socket_connect_timeout"):
        # redis-py's own default (5 s) cannot be told from a choice of 5 s: `timeout` counts unless it is another.
        if kept.get(option) in (None, 5, 5.0):
            kept[option] = settings.timeout
    introduce = kept.get("redis_connect_func")
    if inspect.iscoroutinefunction(introduce):
        raise ConfigError(
            "url", "the client's redis_connect_func is a coroutine function: the cache's thread has no use"
        )
    protocol = kept.get("protocol") or 3
    if str(protocol) not in ("2", "3"):
        raise ConfigError("url", "protocol must be 2 or 3, the version of RESP")
    kept |= {
        "protocol": int(protocol),
        "decode_responses": False,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
        "redis_connect_func": _introduce(introduce),
    }
    if MaintNotificationsConfig is not None:
        kept["maint_notifications_config"] = MaintNotificationsConfig(enabled=False)
    database = int(kept.get("db") or 0)
    where = kept.get("path") or f"{kept.get('host', 'localhost')}:{kept.get('port', 6379)}"
    return Endpoint(
        cls,
        kept,
        database,
        f"{where}/{database}",
        in_memory=cls.__module__.startswith("fakeredis."),
        introduced=introduce is not None,
    )


def _introduce(user_function: Callable[[Any], None] | None) -> Callable[[AbstractConnection], None]:
    """Return what a connection does once it is connected: the usual handshake, then learn which server it leads to."""

    def on_connect(connection: AbstractConnection) -> None:
        if user_function is None:
            connection.on_connect()
        else:
            user_function(connection)
        setattr(connection, _SERVER, _ask_run_id(connection))

    return on_connect


def _ask_run_id(connection: AbstractConnection) -> str:
    try:
        connection.send_command("INFO", "server")
        info = connection.read_response(disable_decoding=True)
    except redis.exceptions.NoPermissionError as error:
        raise may_not_ask(error) from None
    except redis.ResponseError as error:
        if "unknown" not in str(error).lower():
            raise
        # A server without INFO: fakeredis. It has no failover either, so one name for it is enough.
        return f"no-info:{id(connection.__dict__.get('_server'))}"
    return run_id_of(info)


def may_not_ask(error: redis.RedisError) -> redis.RedisError:
    """Return what to raise if a user may not ask for the run id."""
    return redis.exceptions.NoPermissionError(
        f"{error}; this user needs the right to run INFO: ACL SETUSER <user> +info"
    )


def run_id_of(info: Any) -> str:
    """Find the run id in an answer to ``INFO server``.

    Raises:
        redis.ResponseError: it shows none.
    """
    for line in bytes(info).splitlines():
        if line.startswith(b"run_id:"):
            return line.removeprefix(b"run_id:").decode("ascii")
    raise redis.ResponseError("INFO server shows no run_id; a proxy that hides which server answers cannot be used")


def server_of(connection: AbstractConnection) -> str:
    """Run id of the server that a connected connection leads to (P16)."""
    server: str = getattr(connection, _SERVER)
    return server
