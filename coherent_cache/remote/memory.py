"""``memory://name``: a Redis inside this process, for tests. Caches of one name are coherent with each other.

The server is fakeredis. It is shared by everything in this process that asks for its name, and by nothing else: a
forked child starts with no server at all, so that a test in a child cannot be misled by a frozen copy of the parent's
data. A server lives as long as the process, or until :func:`forget_server`; give each test its own name.

A connection of this kind needs care in one place: its ``read_response`` waits without limit whatever ``timeout`` says,
because there is no socket underneath. Ask ``can_read(timeout)`` first.
"""

from __future__ import annotations

import importlib
import os
import threading
from typing import TYPE_CHECKING, Any, Final

from coherent_cache.errors import ConfigError

if TYPE_CHECKING:
    import redis

REDIS_VERSION: Final = (7, 0)
"""The Redis whose behaviour is imitated: the oldest that most distributions still ship."""

_servers: dict[str, Any] = {}  # guarded by _lock
_lock = threading.Lock()


def memory_connection(name: str) -> tuple[type[redis.Connection], dict[str, Any]]:
    """Return the class and the arguments for connections to the server called ``name``.

    The caller builds connections with ``cls(**kwargs)``, or gives both to a pool. Arguments of its own (``db``,
    ``protocol``, ``client_name``, time-outs, also None) may be added to the dict, which is a new one for each call.

    Raises:
        ConfigError: fakeredis or its Lua is not installed.
    """
    fakeredis = _import_fakeredis()
    with _lock:
        server = _servers.get(name)
        if server is None:
            server = _servers[name] = fakeredis.FakeServer(version=REDIS_VERSION)
    return fakeredis.FakeRedisConnection, {"server": server, "db": 0, "protocol": 3, "decode_responses": False}


def fake_connection_class() -> type[redis.Connection]:
    """Return fakeredis' class of connections for threads."""
    cls: type[redis.Connection] = _import_fakeredis().FakeRedisConnection
    return cls


def forget_server(name: str) -> None:
    """Let go of the server called ``name`` and its data, if there is one; caches that still use it keep it."""
    with _lock:
        _servers.pop(name, None)


def _import_fakeredis() -> Any:
    try:
        importlib.import_module("lupa")
        return importlib.import_module("fakeredis")
    except ImportError as error:
        raise ConfigError(
            "url",
            f"memory:// needs fakeredis with Lua ({error}); install the extra: pip install 'coherent-cache[memory]'",
        ) from error


def _forget_in_child() -> None:
    # The lock may have been held by a thread that the child does not have.
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()
    _servers.clear()


os.register_at_fork(after_in_child=_forget_in_child)
