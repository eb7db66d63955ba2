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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit
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
from coherent_cache.remote.sentinel import DEFAULT_PORT, Address, Sentinels

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

_SENTINEL_URL: Final = re.compile(
    r"redis(?P<tls>s?)\+sentinel://(?:(?P<user>[^@/?]*)@)?(?P<hosts>[^@/?]+)/(?P<service>[^/?]+)(?:/(?P<db>\d*))?/?"
    r"(?:\?(?P<query>.*))?"
)

_SHORTEST_PATIENCE: Final = 0.25
"""Seconds that a sentinel has for its answer, or a master to introduce itself to a subscriber, at least."""


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
        sentinels: who tells the host and port; None if they are among the arguments.
    """

    connection_class: type[AbstractConnection]
    kwargs: dict[str, Any] = field(repr=False)  # there may be a password in it
    database: int
    description: str
    note: str = ""
    in_memory: bool = False
    introduced: bool = False
    sentinels: Sentinels | None = None

    def connect(self, *, name: str, protocol: int | None = None, within: float | None = None) -> AbstractConnection:
        """Make a connected, authenticated connection that knows its server.

        Args:
            name: client name, shown by CLIENT LIST.
            protocol: RESP version, if another than the endpoint's.
            within: seconds that each step of it may take, if others than the endpoint's.

        Raises:
            redis.RedisError: it could not be connected.
        """
        connection = self.make(name=name, protocol=protocol)
        if within is None:
            connection.connect()
            return connection
        timeout, connection.socket_timeout = connection.socket_timeout, within
        connection.socket_connect_timeout = within
        connection.connect()
        connection.socket_timeout = timeout
        getattr(connection, "_sock").settimeout(timeout)  # noqa: B009  # not every class declares it
        return connection

    def make(self, *, name: str, protocol: int | None = None) -> AbstractConnection:
        """Make a connection that is not connected yet; see :meth:`connect`."""
        kwargs = self.kwargs | {"client_name": name}
        if protocol is not None:
            kwargs["protocol"] = protocol
        if self.sentinels is not None:
            kwargs["host"], kwargs["port"] = self.sentinels.locate()
        connection = self.connection_class(**kwargs)
        _made.add(connection)
        return connection

    @property
    def question(self) -> tuple[str, ...]:
        """The command whose answer tells which server it is, and with sentinels whether it is a master."""
        return _question(self.sentinels)

    def run_id_of(self, info: Any) -> str:
        """Find the run id in the answer to :attr:`question`.

        Raises:
            redis.RedisError: it shows none, or it is no master.
        """
        return run_id_of(info, master=self.sentinels is not None)

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

    def make_asynchronous(self, *, name: str, address: Address | None = None) -> asynchronous.AbstractConnection:
        """Make a connection for the running event loop that is not connected yet.

        Its server is not noted; :meth:`run_id_of` finds it in the answer to :attr:`question`.

        Args:
            name: client name, shown by CLIENT LIST.
            address: host and port, if sentinels tell them.
        """
        kwargs = self.kwargs | {"client_name": name, "retry": AsyncRetry(NoBackoff(), 0)}
        del kwargs["redis_connect_func"]
        if address is not None:
            kwargs["host"], kwargs["port"] = address
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
        source: a URL (``redis://``, ``rediss://``, ``unix://``, ``redis+sentinel://``, ``rediss+sentinel://``,
            ``memory://name``, ``embedded://name``), or a client of redis-py or fakeredis, synchronous or asyncio's, of
            which the options are taken and no connection.
        settings: settings of the instance.

    Raises:
        ConfigError: the source is neither, or of a kind that is not supported.
    """
    if isinstance(source, str):
        return _from_url(source, settings)
    if isinstance(source, redis.Redis | redis.asyncio.Redis):
        pool = source.connection_pool
        if "service_name" in vars(pool):
            return _behind_sentinels(pool, settings)
        return _endpoint(_synchronous(pool.connection_class), dict(pool.connection_kwargs), settings)
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
    if scheme in ("redis+sentinel", "rediss+sentinel"):
        return _from_sentinel_url(url, settings)
    if scheme == "redis+cluster":
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


def _from_sentinel_url(url: str, settings: Settings) -> Endpoint:
    found = _SENTINEL_URL.fullmatch(url)
    if found is None:
        raise ConfigError(
            "url", "must be redis+sentinel://[user:password@]host:port,host:port/service[/db][?sentinel_password=...]"
        )
    own, others = {}, []
    for name, value in parse_qsl(found["query"] or "", keep_blank_values=True):
        if name in ("sentinel_username", "sentinel_password"):
            own[name.removeprefix("sentinel_")] = value
        else:
            others.append((name, value))
    addresses = []
    for host in found["hosts"].split(","):
        try:
            parts = urlsplit(f"//{host}")
            addresses.append((parts.hostname or "", parts.port or DEFAULT_PORT))
        except ValueError as error:
            raise ConfigError("url", f"is not valid: {_harmless(error)}") from None
    if not all(host for host, _ in addresses):
        raise ConfigError("url", "each sentinel needs a host, as in redis+sentinel://host:26379,host:26379/service")
    user = f"{found['user']}@" if found["user"] else ""
    master = _from_url(f"redis{found['tls']}://{user}-/{found['db'] or 0}?{urlencode(others)}", settings)
    credentials = {"username": None, "password": None, "credential_provider": None}
    return _with_sentinels(
        master,
        unquote(found["service"]),
        addresses,
        master.connection_class,
        master.kwargs | credentials | own,
        settings,
    )


def _behind_sentinels(pool: Any, settings: Settings) -> Endpoint:
    """Find out what a client knows that redis-py's Sentinel has made."""
    if not pool.is_master:
        raise ConfigError("url", "is a client of replicas, which are never read; take the Sentinel's master_for()")
    kwargs = dict(pool.connection_kwargs)
    secure = "SSL" in pool.connection_class.__name__
    manager = pool.sentinel_manager
    asked = [client.connection_pool for client in manager.sentinels]
    return _with_sentinels(
        _endpoint(SSLConnection if secure else Connection, kwargs, settings),
        pool.service_name,
        [(each.connection_kwargs["host"], each.connection_kwargs["port"]) for each in asked],
        SSLConnection if "SSL" in asked[0].connection_class.__name__ else Connection,
        asked[0].connection_kwargs,
        settings,
        introduce=kwargs.get("redis_connect_func"),
        min_other_sentinels=manager.min_other_sentinels,
    )


def _with_sentinels(
    master: Endpoint,
    service: str,
    addresses: Sequence[Address],
    connection_class: type[AbstractConnection],
    kwargs: Mapping[str, Any],
    settings: Settings,
    *,
    introduce: Callable[[Any], None] | None = None,
    min_other_sentinels: int = 0,
) -> Endpoint:
    sentinels = Sentinels(
        service,
        addresses,
        connection_class=connection_class,
        kwargs=kwargs,
        timeout=patience_of(settings),
        min_other_sentinels=min_other_sentinels,
    )
    places = ",".join(f"{host}:{port}" for host, port in addresses)
    return replace(
        master,
        kwargs=master.kwargs | {"redis_connect_func": _introduce(introduce, sentinels)},
        description=f"{service}@{places}/{master.database}",
        sentinels=sentinels,
    )


def patience_of(settings: Settings) -> float:
    """Seconds that a server has to introduce itself, where another one may take its place: at most a heartbeat."""
    return min(settings.timeout, max(settings.heartbeat, _SHORTEST_PATIENCE))


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


def _introduce(
    user_function: Callable[[Any], None] | None, sentinels: Sentinels | None = None
) -> Callable[[AbstractConnection], None]:
    """Return what a connection does once it is connected: the usual handshake, then learn which server it leads to."""

    def on_connect(connection: AbstractConnection) -> None:
        if user_function is None:
            connection.on_connect()
        else:
            user_function(connection)
        setattr(connection, _SERVER, _ask_run_id(connection, sentinels))

    return on_connect


def _question(sentinels: Sentinels | None) -> tuple[str, ...]:
    return ("INFO", "server") if sentinels is None else ("INFO",)  # two sections at once: Redis 7


def _ask_run_id(connection: AbstractConnection, sentinels: Sentinels | None) -> str:
    try:
        connection.send_command(*_question(sentinels))
        info = connection.read_response(disable_decoding=True)
    except redis.exceptions.NoPermissionError as error:
        raise may_not_ask(error) from None
    except redis.ResponseError as error:
        if "unknown" not in str(error).lower():
            raise
        # A server without INFO: fakeredis. It has no failover either, so one name for it is enough.
        return f"no-info:{id(connection.__dict__.get('_server'))}"
    return run_id_of(info, master=sentinels is not None)


def may_not_ask(error: redis.RedisError) -> redis.RedisError:
    """Return what to raise if a user may not ask for the run id."""
    return redis.exceptions.NoPermissionError(
        f"{error}; this user needs the right to run INFO: ACL SETUSER <user> +info"
    )


def run_id_of(info: Any, *, master: bool) -> str:
    """Find the run id in an answer to ``INFO``.

    Args:
        info: the answer.
        master: whether the server must be one.

    Raises:
        redis.ResponseError: it shows none.
        redis.ConnectionError: it must be a master, and is none.
    """
    lines = bytes(info).splitlines()
    if master and b"role:master" not in lines:
        raise redis.ConnectionError("the sentinels name a server that is no master yet, or no longer")
    for line in lines:
        if line.startswith(b"run_id:"):
            return line.removeprefix(b"run_id:").decode("ascii")
    raise redis.ResponseError("INFO server shows no run_id; a proxy that hides which server answers cannot be used")


def server_of(connection: AbstractConnection) -> str:
    """Run id of the server that a connected connection leads to (P16)."""
    server: str = getattr(connection, _SERVER)
    return server
