"""A master, its replicas, and the sentinels that watch it: processes of ``redis-server``."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import redis

from integration.servers import ProcessServer, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import Self

SERVICE = "cache"
DOWN_AFTER = 1000  # milliseconds without an answer after which a sentinel holds a server for down
FAILOVER_TIMEOUT = 5000  # milliseconds; half of it passes before a failed attempt is repeated
SETTLE = 30.0  # seconds for what replicas and sentinels do among themselves


class SentinelServer(ProcessServer):
    """A sentinel. Its configuration is a file, which it rewrites."""

    kind = "sentinel"

    def __init__(self, master: int, *, password: str = "", auth: str = "") -> None:
        super().__init__()
        self._lines = [
            f"sentinel monitor {SERVICE} 127.0.0.1 {master} 2",
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER}",
            f"sentinel failover-timeout {SERVICE} {FAILOVER_TIMEOUT}",
        ]
        if password:  # its own, which it also gives to other sentinels
            self._lines += [f"requirepass {password}", f"sentinel sentinel-pass {password}"]
        if auth:
            self._lines.append(f"sentinel auth-pass {SERVICE} {auth}")
        self._password = password

    def client(self, **options: object) -> redis.Redis:
        return super().client(**({"password": self._password or None} | options))

    def _command(self, directory: Path) -> list[str]:
        file = directory / "sentinel.conf"
        if not file.exists():
            address = [f"port {self.port}", "bind 127.0.0.1", f"dir {directory}"]
            file.write_text("\n".join([*address, *self._lines]) + "\n")
        return [str(self._find_binary()), str(file), "--sentinel"]


class SentinelTopology:
    """One master, two replicas, three sentinels.

    Args:
        config: lines of redis.conf for master and replicas.
        password: of the sentinels.
        auth: of master and replicas.
    """

    def __init__(self, *, config: Mapping[str, str] | None = None, password: str = "", auth: str = "") -> None:
        own = {"repl-diskless-sync-delay": "0", "repl-timeout": "5", "repl-ping-replica-period": "1", **(config or {})}
        if auth:
            own |= {"requirepass": auth, "masterauth": auth}
        self._own, self._password, self._auth = own, password, auth
        self.servers: list[ProcessServer] = []
        self.sentinels: list[SentinelServer] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        for server in (*self.sentinels, *self.servers):
            server.stop()

    def _start(self) -> None:
        master = self._serve(self._own)
        for _ in range(2):
            self._serve(self._own | {"replicaof": f"127.0.0.1 {master.port}"})
        for _ in range(3):
            sentinel = SentinelServer(master.port, password=self._password, auth=self._auth)
            self.sentinels.append(sentinel)
            sentinel.start()
        self.wait_settled()

    def _serve(self, config: Mapping[str, str]) -> ProcessServer:
        server = Guarded(self._auth, config=config)
        self.servers.append(server)
        server.start()
        return server

    @property
    def hosts(self) -> str:
        return ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)

    def url(self, query: str = "") -> str:
        """URL of the cache's database behind the sentinels."""
        user = f":{self._auth}@" if self._auth else ""
        own = f"sentinel_password={self._password}&" if self._password else ""
        return f"redis+sentinel://{user}{self.hosts}/{SERVICE}/0?{own}{query}".rstrip("?&")

    def master(self) -> ProcessServer:
        """Return the server that most sentinels name."""
        named = [self._named_by(sentinel) for sentinel in self.sentinels]
        port = max(set(named), key=named.count)
        return next(server for server in self.servers if server.port == port)

    def _named_by(self, sentinel: SentinelServer) -> int:
        with sentinel.client() as client:
            return int(client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)[1])

    def wait_settled(self, replicas: int = 2) -> None:
        """Wait until all sentinels know each other and the replicas, and these copy the master."""

        def settled() -> bool:
            if len({self._named_by(sentinel) for sentinel in self.sentinels}) != 1:
                return False
            master = self.master()
            for sentinel in self.sentinels:
                with sentinel.client() as client:
                    state = client.sentinel_masters()[SERVICE]
                    others = client.sentinel_slaves(SERVICE)
                alive = [other for other in others if not (other["is_sdown"] or other["is_disconnected"])]
                if state["num-other-sentinels"] < 2 or len(alive) < replicas or state["is_sdown"]:
                    return False
            info = master.info("replication")
            states = [value["state"] for name, value in info.items() if name.startswith("slave") and name[5:].isdigit()]
            return info["role"] == "master" and states.count("online") >= replicas

        wait_until(settled, SETTLE, "sentinels and replicas have found each other", interval=0.1)

    def copied(self) -> bool:
        """Whether the replicas have received what the master has sent."""
        info = self.master().info("replication")
        copies = [value["offset"] for name, value in info.items() if name.startswith("slave") and name[5:].isdigit()]
        return bool(copies) and min(copies) >= info["master_repl_offset"]

    @contextlib.contextmanager
    def failover(self, heard_of_by: Sequence[SentinelServer] = ()) -> Iterator[Switch]:
        """Give what notes when a sentinel, one of those given or any, switches to another master."""
        switch = Switch(heard_of_by or self.sentinels)
        try:
            yield switch
        finally:
            switch.close()


class Guarded(ProcessServer):
    """A server that may want a password."""

    def __init__(self, auth: str, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self._auth = auth

    def client(self, **options: object) -> redis.Redis:
        return super().client(**({"password": self._auth or None} | options))


class Switch:
    """Listens to sentinels for ``+switch-master``."""

    def __init__(self, sentinels: Sequence[SentinelServer]) -> None:
        self._clients = [sentinel.client() for sentinel in sentinels]
        self._listeners = [client.pubsub() for client in self._clients]
        for listener in self._listeners:
            listener.subscribe("+switch-master")
            listener.get_message(timeout=5)

    def wait(self, timeout: float = SETTLE) -> float:
        """Return when the first sentinel told of it, by the monotonic clock."""

        def heard() -> float | None:
            for listener in self._listeners:
                message = listener.get_message(timeout=0.005)
                if message is not None and message["type"] == "message":
                    return time.monotonic()
            return None

        at = wait_until(heard, timeout, "the sentinels switch to another master", interval=0.001)
        assert at is not None
        return at

    def close(self) -> None:
        for each in (*self._listeners, *self._clients):
            each.close()
