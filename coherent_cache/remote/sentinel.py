"""Who is the master of a service: its sentinels are asked each time a connection is made, by redis-py.

A sentinel that was cut off goes on naming the old master. So the number of the last failover that was heard of is
remembered, and whoever knows less is not believed: an instance never goes back to a master that it has left.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, SSLConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry
from redis.sentinel import Sentinel

Address = tuple[str, int]

DEFAULT_PORT: Final = 26379
"""Port of a sentinel."""

_KEPT: Final = ("username", "password", "credential_provider", "socket_keepalive", "socket_keepalive_options")


class Sentinels:
    """The sentinels of one service. They are asked over connections that end with the answer."""

    def __init__(
        self,
        service: str,
        addresses: Sequence[Address],
        *,
        connection_class: type[AbstractConnection],
        kwargs: Mapping[str, Any],
        timeout: float,
        min_other_sentinels: int = 0,
    ) -> None:
        """Note where they are; nobody is asked yet.

        Args:
            service: name that the sentinels know the master by.
            addresses: hosts and ports of the sentinels.
            connection_class: redis-py's class of connections to them.
            kwargs: its options: credentials of the sentinels, TLS.
            timeout: seconds that each of them has for its answer.
            min_other_sentinels: how many others a sentinel must see to be believed.
        """
        self.service = service
        self.addresses = tuple(addresses)
        self._class = connection_class
        taken = {name: value for name, value in kwargs.items() if name in _KEPT or _is_tls(name, connection_class)}
        limits = {"socket_timeout": timeout, "socket_connect_timeout": timeout, "retry": Retry(NoBackoff(), 0)}
        self._kwargs: dict[str, Any] = taken | limits | {"protocol": 2}
        self._min_other_sentinels = min_other_sentinels
        self._order = self.addresses
        self._failovers = 0

    def locate(self) -> Address:
        """Ask for the master, first of all whoever could say last time.

        Raises:
            redis.ConnectionError: none of the sentinels names one that it holds for alive.
        """
        reasons = []
        for address in self._order:
            try:
                state = self._ask(address)
            except (redis.RedisError, OSError) as error:
                reasons.append(f"{address[0]}:{address[1]}: {error}")
                continue
            if isinstance(state, str):
                reasons.append(f"{address[0]}:{address[1]} {state}")
                continue
            self._failovers = max(self._failovers, state["config-epoch"])
            self._order = (address, *(other for other in self.addresses if other != address))
            return str(state["ip"]), int(state["port"])
        raise RedisConnectionError(f"no sentinel names a living master of {self.service!r} ({'; '.join(reasons)})")

    def _ask(self, address: Address) -> dict[str, Any] | str:
        """Return what a sentinel knows of the master, or why that is of no use."""
        pool = redis.ConnectionPool(self._class, host=address[0], port=address[1], **self._kwargs)
        manager = Sentinel([address], self._min_other_sentinels, {"connection_pool": pool})
        try:
            masters: Any = manager.sentinels[0].sentinel_masters()
        finally:
            pool.disconnect()
        state: dict[str, Any] | None = masters.get(self.service)
        if state is None:
            return "knows no such service"
        if not manager.check_master_state(state, self.service):
            return "holds it for down"
        return state if state["config-epoch"] >= self._failovers else "has not heard of the last failover"


def _is_tls(option: str, connection_class: type[AbstractConnection]) -> bool:
    return option.startswith("ssl_") and issubclass(connection_class, SSLConnection)


class MasterWatch:
    """A thread that looks whether the sentinels still name the master that a connection leads to.

    Connections end by themselves when a master dies or is demoted. One that nobody can tell of its demotion, because it
    is cut off from the sentinels, goes on answering: from it, only this leads away.
    """

    def __init__(self, sentinels: Sentinels, *, interval: float, moved: Callable[[str], None], name: str) -> None:
        """Prepare the thread.

        Args:
            sentinels: whom to ask.
            interval: seconds between questions.
            moved: told that there is another master, and which.
            name: the thread's name.
        """
        self.address: Address | None = None
        """Where the connection leads to; None if there is none."""
        self._sentinels = sentinels
        self._interval = interval
        self._moved = moved
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: there are too many.
        """
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End the thread; wait for that ``timeout`` seconds at most."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def look(self) -> None:
        """Ask once."""
        address = self.address
        if address is None:
            return
        try:
            master = self._sentinels.locate()
        except (redis.RedisError, OSError):
            return  # nobody knows: the heartbeats judge
        if master != address and self.address == address:
            self._moved(f"the sentinels name another master, {master[0]}:{master[1]}")

    def _run(self) -> None:
        while not self._stopping.wait(self._interval):
            self.look()
