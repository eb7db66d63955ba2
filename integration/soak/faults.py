"""What is done to the fleet, to its connections and to Redis: each kind of fault is one generator of :class:`Injector`.

What precedes its ``yield`` begins the fault, what follows it ends the fault; it returns how many things it was done to.
Faults that lose data note between which moments that happened, and which history follows.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from coherent_cache import CoherentCache
from coherent_cache.keys import shard_names
from integration.server_base import free_port
from integration.servers import start_server
from integration.soak.records import Loss, clock, short
from integration.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from random import Random

    import redis

    from coherent_cache.testing.fault_proxy import FaultProxy, ProxiedConnection
    from integration.servers import RedisServer
    from integration.soak.fleet import Fleet
    from integration.soak.records import Log

    Steps = Generator[None, None, int]

NAMESPACE = "soak"
SERVER_CONFIG = {"repl-diskless-sync-delay": "0"}
TIMEOUT = 20.0  # seconds for what must happen in between
HISTORY_TIMEOUT = 1.0  # seconds until somebody has begun a new history; then the injector does it
NESTED = 0.35  # part of the lasting faults during which another one happens
PADDING = {"p" * 1000 + str(number): number for number in range(150)}
"""A bulk write whose message is larger than what Redis keeps for a client beside its output buffer."""

LASTING = {
    "pause-worker": (1.2, 2.2),
    "pause-redis": (0.3, 1.6),
    "hold-subscriber": (0.3, 2.2),
    "half-open-subscriber": (0.3, 2.2),
    "black-hole-subscriber": (0.3, 2.2),
    "hold-worker": (0.3, 2.2),
    "lose-answers": (0.3, 1.5),
    "lose-messages": (0.3, 1.0),
    "delay-all": (0.5, 1.5),
    "delay-subscriber": (0.5, 1.5),
    "delay-reply": (0.5, 1.0),
    "throttle-subscriber": (0.5, 1.5),
    "refuse-subscriber": (0.3, 2.2),
    "cut-half-way": (0.3, 0.8),
    "out-of-memory": (0.3, 1.0),
    "read-only": (0.3, 1.6),
}
"""Faults that last, with the shortest and longest time in units of ``max_staleness``."""

INSTANT = (
    "cut-subscriber", "cut-all-subscribers", "cut-commands", "cut-worker", "kill-worker", "restart-with-data",
    "restart-empty", "flushall", "delete-clock", "delete-log", "trim-log", "garbage", "small-buffer", "fail-over",
    "fail-over-zombie",
)  # fmt: skip
ALL = (*LASTING, *INSTANT)

_ALONE = frozenset({"pause-redis", "out-of-memory", "read-only"})
"""Faults that concern the server itself: what would happen to it meanwhile cannot be done."""


class Injector:
    """Does one fault after the other. One thread uses it."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        proxy: FaultProxy,
        server: RedisServer,
        rng: Random,
        log: Log,
        options: dict[str, Any],
        inner: Sequence[str],
        say: Callable[[str], object],
    ) -> None:
        """Begin with a running fleet.

        Args:
            fleet: the workers.
            proxy: what stands between them and Redis.
            server: the first primary; the injector ends it and those that follow.
            rng: decides everything that is left to chance.
            log: where faults are noted.
            options: of the caches.
            inner: kinds of faults that may happen during another one.
            say: told what happens.
        """
        self._inner = inner
        self._fleet = fleet
        self._proxy = proxy
        self.server = server
        self._rng = rng
        self._log = log
        self._options = options
        self._say = say
        self._names = shard_names(NAMESPACE, 0, 0)
        self._retired: list[tuple[float, RedisServer]] = []
        self._note = ""
        self._target = ""
        self._address = _address(server)
        self._log.write(["server", self._run_id()])
        self._note_history()

    def inject(self, name: str, *, nested: bool = True) -> int:
        """Do one fault from its begin to its end, and note it; return how many things it was done to."""
        rng = self._rng
        duration = rng.uniform(*LASTING[name]) * self._options["max_staleness"] if name in LASTING else 0.0
        inner = None
        if name in LASTING and nested and self._inner and rng.random() < NESTED and name not in _ALONE:
            # A fail-over that somebody sleeps through is the hardest: the same numbers are given again meanwhile.
            inner = rng.choices(self._inner, [3 if name.startswith("fail-over") else 1 for name in self._inner])[0]
        began = clock()
        self._note, self._target = "", ""
        steps: Steps = getattr(self, "_" + name.replace("-", "_"))()
        try:
            next(steps)
            note, target = self._note, self._target
            if inner is not None:
                time.sleep(duration * 0.3)
                self.inject(inner, nested=False)
                note += f"; meanwhile {inner}"
            time.sleep(max(0.0, began + duration - clock()))
            self._note, self._target = note, target
            next(steps)
            raise AssertionError(f"{name} has two yields")
        except StopIteration as stop:
            effect: int = stop.value
        self._log.write(["fault", name, began, clock(), self._target, effect, self._note.strip("; ")])
        self._say(f"{name} {self._target} {self._note} ({effect})")
        return effect

    def wait(self, seconds: float) -> None:
        """Let time pass, and end what was retired."""
        time.sleep(seconds)
        for each in [each for each in self._retired if each[0] <= clock()]:
            each[1].stop()
            self._retired.remove(each)
        self._fleet.check()

    def close(self) -> None:
        """End the servers."""
        for _, server in self._retired:
            server.stop()
        self.server.stop()

    # -- connections, by the server ------------------------------------------------------------------------------------

    def _cut_subscriber(self) -> Steps:
        worker = self._pick()
        yield
        return self._kill_clients(lambda name: name == f"coherent-cache:{worker}:subscriber")

    def _cut_all_subscribers(self) -> Steps:
        yield
        return self._kill_clients(lambda name: name.endswith(":subscriber"))

    def _cut_commands(self) -> Steps:
        yield
        return self._kill_clients(lambda name: name.startswith("coherent-cache:") and not name.endswith(":subscriber"))

    def _kill_clients(self, wanted: Callable[[str], bool]) -> int:
        with self._plain() as plain:
            found = [each["id"] for each in plain.client_list() if wanted(each["name"])]
            return sum(plain.client_kill_filter(_id=identity) for identity in found)

    def _small_buffer(self) -> Steps:
        """Let all subscribers be cut by the output buffer limit, in the middle of a bulk write's message (I5)."""
        with self._plain() as plain:
            before = self._subscribers(plain)
            old = plain.config_get("client-output-buffer-limit")["client-output-buffer-limit"]
            plain.config_set("client-output-buffer-limit", "pubsub 1024 0 0")
            with self._remote() as remote:
                remote.set_many(PADDING, ttl=1)
            plain.config_set("client-output-buffer-limit", old)
            cut = before - self._subscribers(plain)
        yield
        return len(cut)

    def _subscribers(self, plain: redis.Redis) -> set[str]:
        return {each["id"] for each in plain.client_list() if each["name"].endswith(":subscriber")}

    # -- connections, by the network -----------------------------------------------------------------------------------

    def _cut_worker(self) -> Steps:
        worker = self._pick()
        yield
        return self._proxy.cut(where=f"coherent-cache:{worker}*", reset=self._rng.random() < 0.5)

    def _hold_subscriber(self) -> Steps:
        yield from self._network(self._proxy.hold, subscriber=True)
        return 1

    def _half_open_subscriber(self) -> Steps:
        yield from self._network(
            self._proxy.hold, subscriber=True, direction=self._rng.choice(["to_client", "to_server"])
        )
        return 1

    def _black_hole_subscriber(self) -> Steps:
        yield from self._network(self._proxy.black_hole, subscriber=True)
        return 1

    def _hold_worker(self) -> Steps:
        yield from self._network(self._proxy.hold, subscriber=False)
        return 1

    def _lose_answers(self) -> Steps:
        yield from self._network(self._proxy.black_hole, subscriber=False, direction="to_client")
        return 1

    def _lose_messages(self) -> Steps:
        """Lose messages silently, which no network does: the heartbeat must notice."""
        number = self._rng.choice([2, 10, None])
        self._note = f"{number or 'all'}"
        yield from self._network(self._proxy.lose, number, subscriber=True, of="push")
        return 1

    def _delay_all(self) -> Steps:
        self._note = seconds = f"{self._rng.uniform(0.02, 0.3):.3f}"
        with self._proxy.delay(float(seconds), jitter=0.05):
            yield
        return 1

    def _delay_subscriber(self) -> Steps:
        seconds = self._rng.uniform(0.02, 0.8)
        self._note = f"{seconds:.3f} s"
        yield from self._network(self._proxy.delay, seconds, subscriber=True, jitter=0.1)
        return 1

    def _delay_reply(self) -> Steps:
        """Delay single answers, so that messages overtake them."""
        yield from self._network(self._proxy.delay_reply, self._rng.randint(1, 5), 0.4, subscriber=False)
        return 1

    def _throttle_subscriber(self) -> Steps:
        yield from self._network(self._proxy.throttle, self._rng.choice([300, 1000, 3000]), subscriber=True)
        return 1

    def _refuse_subscriber(self) -> Steps:
        worker = self._pick()
        where = f"coherent-cache:{worker}:subscriber"
        with self._proxy.refuse(where=where):
            cut = self._proxy.cut(where=where)
            yield
        return cut

    def _cut_half_way(self) -> Steps:
        direction = self._rng.choice(["to_client", "to_server", "both"])
        self._note = direction
        with self._proxy.cut_after(self._rng.randint(1, 700), direction=direction):
            yield
        return 1

    def _network(self, fault: Callable[..., Any], *arguments: Any, subscriber: bool, **options: Any) -> Generator[None]:
        """Do a lasting fault to the connections of one worker, at times of all."""
        worker = "*" if self._rng.random() < 0.25 else self._pick()
        if worker == "*":
            self._note += " all"
        where = f"coherent-cache:{worker}:subscriber" if subscriber else f"coherent-cache:{worker}*"
        with fault(*arguments, where=where, **options):
            yield

    # -- workers -------------------------------------------------------------------------------------------------------

    def _pause_worker(self) -> Steps:
        worker = self._fleet.workers[self._pick_place()]
        worker.pause()
        yield
        worker.resume()
        return 1

    def _kill_worker(self) -> Steps:
        place = self._pick_place()
        self._fleet.workers[place].kill()
        yield
        time.sleep(self._rng.uniform(0, 0.3))
        self._fleet.replace(place)
        return 1

    # -- Redis ---------------------------------------------------------------------------------------------------------

    def _pause_redis(self) -> Steps:
        self.server.pause()
        yield
        self.server.resume()
        return 1

    def _out_of_memory(self) -> Steps:
        with self._plain() as plain:
            plain.config_set("maxmemory", 1)
            yield
            plain.config_set("maxmemory", 0)
        return 1

    def _read_only(self) -> Steps:
        """Make the primary a replica of nobody for a moment; it loses nothing, for it never meets another primary."""
        with self._plain() as plain:
            plain.replicaof("127.0.0.1", free_port())
            yield
            plain.replicaof("NO", "ONE")
        return 1

    def _restart_with_data(self) -> Steps:
        if self._rng.random() < 0.6:
            self._note = "killed"
            self.server.kill()
            time.sleep(self._rng.uniform(0, 0.5))
        yield
        self.server.restart(keep_data=True)
        self._log.write(["server", self._run_id()])
        return 1

    def _restart_empty(self) -> Steps:
        began = clock()
        self.server.kill()
        ended = clock()
        yield
        self.server.restart(keep_data=False)
        self._lost("restart-empty", began, ended)
        return 1

    def _flushall(self) -> Steps:
        with self._plain() as plain:
            began = clock()
            plain.flushall()
            self._lost("flushall", began, clock())
        yield
        return 1

    def _delete_clock(self) -> Steps:
        with self._plain() as plain:
            began = clock()
            deleted = plain.delete(self._names.clock)
            self._lost("delete-clock", began, clock())
        yield
        return deleted

    def _delete_log(self) -> Steps:
        with self._plain() as plain:
            deleted = plain.delete(self._names.log)
            cut = self._kill_clients(lambda name: name.endswith(":subscriber"))
        self._note = f"and {cut} subscribers cut"
        yield
        return deleted

    def _trim_log(self) -> Steps:
        keep = self._rng.randint(0, 5)
        with self._plain() as plain:
            trimmed = plain.xtrim(self._names.log, maxlen=keep, approximate=False)
            cut = self._kill_clients(lambda name: name.endswith(":subscriber"))
        self._note = f"to {keep}, and {cut} subscribers cut"
        yield
        return trimmed

    def _garbage(self) -> Steps:
        """Publish bytes that are no message (P8)."""
        data = self._rng.choice([b"", b"\x01", b"hello", b"\x02" + os.urandom(20), os.urandom(200)])
        with self._plain() as plain:
            receivers = plain.publish(self._names.channel, data)
        yield
        return receivers

    def _fail_over(self) -> Steps:
        """Promote a replica that lags; the old primary has died."""
        yield from self._promote(zombie=False)
        return 1

    def _fail_over_zombie(self) -> Steps:
        """Promote a replica that lags, while the old primary lives on and answers those that still have it."""
        yield from self._promote(zombie=True)
        return 1

    def _promote(self, *, zombie: bool) -> Generator[None]:
        old, rng = self.server, self._rng
        new = start_server(_mode(), config=SERVER_CONFIG, durable=True)
        with new.client() as plain:
            plain.replicaof(*_address(old).split(":"))
            wait_until(lambda: _in_step(plain), TIMEOUT, "the replica is in step")
            plain.replicaof("127.0.0.1", free_port())  # from here on it lags
            time.sleep(rng.uniform(0.05, 0.5))
            old_id = self._run_id()
            began = clock()
            if not zombie:
                old.kill()
            plain.replicaof("NO", "ONE")
            fork = int(plain.hget(self._names.clock, "seq") or 0)
        self.server = new
        self._proxy.upstream = new.url
        if zombie:
            time.sleep(rng.uniform(0, 0.3))
            address = _address(old)

            def stream_from_old(connection: ProxiedConnection) -> bool:
                # One in its handshake has no name yet: it may become a subscriber.
                return connection.upstream == address and (
                    not connection.name or connection.name.endswith(":subscriber")
                )

            self._proxy.cut(where=stream_from_old)
        ended = clock()
        self._retired.append((clock() + rng.uniform(0.5, 3.0), old))
        self._note = f"fork at {fork}"
        self._log.write(["loss", *Loss("fail-over", began, ended, fork, old_id)], ["server", self._run_id()])
        self._note_history()
        yield

    # -- inside --------------------------------------------------------------------------------------------------------

    def _pick_place(self) -> int:
        place = self._rng.randrange(len(self._fleet.workers))
        self._target = self._fleet.workers[place].name
        return place

    def _pick(self) -> str:
        self._pick_place()
        return self._target

    def _plain(self) -> redis.Redis:
        return self.server.client()

    def _remote(self) -> CoherentCache:
        options = {**self._options, "local_enabled": False, "timeout": 5.0}
        return CoherentCache(self.server.url, namespace=NAMESPACE, instance_id="injector", **options)

    def _run_id(self) -> str:
        return str(self.server.info()["run_id"])

    def _lost(self, cause: str, began: float, ended: float) -> None:
        """Note that all data was lost."""
        self._log.write(["loss", *Loss(cause, began, ended)], ["server", self._run_id()])
        self._note_history()

    def _note_history(self) -> None:
        """Note the epoch that is now; if nobody has begun one, begin one."""
        with self._plain() as plain:
            try:
                epoch = wait_until(
                    lambda: plain.hget(self._names.clock, "epoch"), HISTORY_TIMEOUT, "a history", interval=0.02
                )
            except AssertionError:
                with self._remote() as remote:
                    remote.set("p", 0)
                epoch = plain.hget(self._names.clock, "epoch")
        self._log.write(["history", short(epoch)])


def _address(server: RedisServer) -> str:
    return server.url.removeprefix("redis://").partition("/")[0]


def _in_step(plain: redis.Redis) -> bool:
    """Whether a replica has all data, on its disk too."""
    replication, persistence = plain.info("replication"), plain.info("persistence")
    return (
        replication.get("master_link_status") == "up"
        and not persistence["loading"]
        and not persistence["aof_rewrite_in_progress"]
        and not persistence["aof_rewrite_scheduled"]
    )


def _mode() -> str:
    """Kind of the servers: processes, for a replica must reach its primary at 127.0.0.1."""
    mode = os.environ.get("COHERENT_CACHE_TEST_REDIS")
    return mode if mode in ("process", "bundled") else "process"


def start_primary() -> RedisServer:
    """Start the first server."""
    return start_server(_mode(), config=SERVER_CONFIG, durable=True)


__all__ = ["ALL", "INSTANT", "LASTING", "NAMESPACE", "Injector", "start_primary"]
