"""Gunicorn's workers under faults, with writes through any of them: no answer is older than allowed."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from coherent_cache import CoherentCache
from coherent_cache.testing.fault_proxy import SUBSCRIBERS, FaultProxy, commands
from coherent_cache.testing.fleet import stop_process
from integration.embedding.configuration import Configuration
from integration.embedding.programs import gunicorn
from integration.embedding.traffic import Traffic, clock, request, wait_for_workers
from integration.servers import start_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from integration.embedding.programs import Program
    from integration.servers import RedisServer

NAMESPACE = "soak"
MAX_STALENESS = 1.0  # seconds
OPTIONS = {"namespace": NAMESPACE, "heartbeat": 0.2, "max_staleness": MAX_STALENESS, "timeout": 1.0}
CLASSES = {"sync": ["--worker-class", "sync"], "gthread": ["--worker-class", "gthread", "--threads", "4"]}
THREADS = 8  # that ask
# So many keys, and so few writes, that a worker which hears nothing does not learn of others' writes by its own.
KEYS, WRITES = 40, 0.1
SETTLED = 0.1  # part of the writes that wait for all workers
GAP = (0.3, 1.0)  # seconds between two faults
LASTING = (0.3, 2.2)  # times the bound that a fault lasts, if it lasts
CALM = 300  # answers that have to come in the end, all of them good
PATIENCE = 60.0  # seconds that they may take
OVERTIME = 3.0  # times the wanted length, until every fault has happened


@dataclass
class Outcome:
    """What a soak has brought.

    Attributes:
        seed: what decided about it.
        seconds: how long it took.
        traffic: what was asked and answered.
        happened: how often each fault happened.
        late: failures when everything was well again.
        lost: acknowledged writes that are gone.
        log: what gunicorn wrote.
    """

    seed: str
    seconds: float
    traffic: Traffic
    happened: Counter[str] = field(default_factory=Counter)
    late: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    log: str = ""

    @property
    def faults(self) -> list[str]:
        """What the contract forbids, and what else is wrong; empty if all is well."""
        trace = ["gunicorn printed a stack trace"] if "Traceback" in self.log else []
        return self.traffic.faults(max_staleness=MAX_STALENESS) + self.lost + self.late + trace

    def report(self) -> str:
        """Tell it to a person."""
        traffic, stale = self.traffic, self.traffic.staleness()
        tiers = Counter(read.tier for read in traffic.reads)
        settled = sum(write.settled for write in traffic.writes)
        why = Counter(failure.why[:60] for failure in traffic.failures)
        lines = [
            f"seed {self.seed}: {self.seconds:.0f} s, {traffic.answers} answers by {len(traffic.pids)} processes",
            f"writes: {len(traffic.writes)}, of which {settled} waited until nobody could serve an older value",
            f"reads: {tiers['local']} local, {tiers['redis']} from Redis",
            f"outdated answers: {len(stale)}, at worst by {max(stale, default=0.0):.3f} s; allowed {MAX_STALENESS} s",
            f"faults: {', '.join(f'{name} {count}' for name, count in sorted(self.happened.items()))}",
            f"requests that failed meanwhile: {len(traffic.failures)}",
            *(f"    {count:5}  {text}" for text, count in why.most_common(8)),
            *self.faults[:20],
            f"{len(self.faults)} violations",
        ]
        return "\n".join(lines)


class Faults:
    """Does one fault after the other; each is a method that ends when the fault has ended."""

    def __init__(self, proxy: FaultProxy, redis: RedisServer, server: Program, rng: Random) -> None:
        self._proxy = proxy
        self._redis = redis
        self._server = server
        self._rng = rng

    def inject(self, name: str) -> None:
        """Do one, by its name in ``FAULTS``."""
        getattr(self, name)()

    def _last(self) -> None:
        time.sleep(self._rng.uniform(*LASTING) * MAX_STALENESS)

    def _worker(self) -> int:
        return self._rng.choice(sorted(self._server.children()))

    def cut_subscribers(self) -> None:
        self._proxy.cut(where=SUBSCRIBERS)

    def cut_commands(self) -> None:
        self._proxy.cut(where=commands)

    def hold_subscribers(self) -> None:
        """Nothing arrives and nothing is closed: workers hear of no write."""
        with self._proxy.hold(where=SUBSCRIBERS):
            self._last()

    def lose_messages(self) -> None:
        with self._proxy.lose(where=SUBSCRIBERS):
            self._last()

    def restart_redis(self) -> None:
        self._redis.restart(keep_data=True)

    def kill_worker(self) -> None:
        """Gunicorn then starts another one."""
        with suppress(ProcessLookupError):
            os.kill(self._worker(), signal.SIGKILL)

    def pause_worker(self) -> None:
        pid = self._worker()
        with suppress(ProcessLookupError):
            stop_process(pid)
            try:
                self._last()
            finally:
                os.kill(pid, signal.SIGCONT)


FAULTS = (
    "cut_subscribers", "cut_commands", "hold_subscribers", "lose_messages", "restart_redis", "kill_worker",
    "pause_worker",
)  # fmt: skip


@contextmanager
def _servers(workers: int, worker_class: str, rng: Random) -> Iterator[tuple[FaultProxy, RedisServer, Program]]:
    with start_server(durable=True) as redis, FaultProxy(redis.url, seed=rng.getrandbits(32)) as proxy:
        configuration = Configuration(proxy.url, OPTIONS, use_at_import=True)
        with gunicorn(configuration, workers=workers, options=["--preload", *CLASSES[worker_class]]) as server:
            yield proxy, redis, server


def soak(
    *,
    seconds: float,
    workers: int = 4,
    worker_class: str = "gthread",
    seed: str | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> Outcome:
    """Run a soak.

    Args:
        seconds: its length; longer if by then not every kind of fault has happened.
        workers: processes of gunicorn.
        worker_class: their kind, one of ``CLASSES``.
        seed: decides which faults happen; None for another one each time.
        say: told what happens.
    """
    seed = seed or secrets.token_hex(4)
    rng = Random(seed)
    with _servers(workers, worker_class, rng) as (proxy, redis, server):
        ask = partial(request, server.socket)
        wait_for_workers(ask, workers)
        faults, deck = Faults(proxy, redis, server, rng), list[str]()
        with Traffic(ask, seed=seed, threads=THREADS, keys=KEYS, writes=WRITES, settled=SETTLED) as traffic:
            outcome = Outcome(seed, seconds, traffic)
            began = clock()
            until, latest = began + seconds, began + OVERTIME * seconds
            while clock() < until or (set(FAULTS) - set(outcome.happened) and clock() < latest):
                if not deck:
                    deck = list(FAULTS)
                    rng.shuffle(deck)
                name = deck.pop()
                say(f"{clock() - began:7.1f} s  {name}")
                faults.inject(name)
                outcome.happened[name] += 1
                time.sleep(rng.uniform(*GAP))
            wait_for_workers(ask, workers)  # connected again, those that were killed replaced
            calm = clock()
            say(f"{calm - began:7.1f} s  calm")
            traffic.run_for(CALM, PATIENCE)
        outcome.seconds = clock() - began
        # What was asked before may have met the last fault.
        outcome.late = [f"it failed without a fault: {each.why}" for each in traffic.failures if each.began > calm]
        with CoherentCache(redis.url, namespace=NAMESPACE, local_enabled=False) as remote:

            def stored(key: str) -> tuple[int, str] | None:
                found = remote.get_entry(key)
                return None if found is None else (found.version.seq, found.value)

            outcome.lost = traffic.lost(stored)
        server.end()
        outcome.log = server.log
    return outcome
