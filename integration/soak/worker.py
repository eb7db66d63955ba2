"""One process of the fleet: ``python -m integration.soak.worker JSON``."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from coherent_cache import CoherentCache
from coherent_cache.cache import MISSING
from coherent_cache.event_hub import EventHub
from integration.blocking import BlockingCache, LoopThread
from integration.coherence_workers import TAGS, _held, tags_of
from integration.soak.operations import ALIKE, KEYS, Notebook
from integration.soak.records import Log, clock
from integration.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from coherent_cache.events import Event

READS = 0.94  # part of the operations
BATCH = 8  # operations of a thread between two pauses
PAUSE = 0.05  # seconds
LONGEST_TTL = 2.0  # seconds, of values that are to expire
SAMPLE = 0.25  # seconds between two samples
END_TIMEOUT = 60.0  # seconds until the others must have stopped too
QUIET_EVENTS = ("invalidation", "fill_refused", "write_published", "lease_taken")  # too many to be noted one by one
COUNTERS = (
    "hits", "misses", "redis_hits", "size", "fills_refused", "resyncs", "replays", "flushes", "errors",
    "invalidations_received", "invalidations_applied", "expirations",
)  # fmt: skip


class Mixture:
    """Reads and writes at random, mostly of a few keys, in one thread and by one front."""

    def __init__(
        self, notebook: Notebook, front: CoherentCache | BlockingCache, rng: Random, stop: threading.Event
    ) -> None:
        self._notebook = notebook
        self._front = front
        self._rng = rng
        self._stop = stop
        self.error: BaseException | None = None

    def run(self) -> None:
        self._notebook.use(self._front)
        try:
            while not self._stop.is_set():
                for _ in range(BATCH):
                    self._step()
                self._notebook.flush()
                time.sleep(PAUSE * self._rng.uniform(0.5, 1.5))
        except BaseException as error:
            self.error = error
            raise

    def _key(self) -> str:
        return KEYS[min(int(self._rng.paretovariate(0.6)) - 1, 10**6) % len(KEYS)]

    def _keys(self, number: int) -> list[str]:
        first = self._key()
        return list(dict.fromkeys([first, *self._rng.choices(ALIKE[tags_of(first)], k=number)]))

    def _step(self) -> None:
        notebook, rng = self._notebook, self._rng
        if rng.random() < READS:
            reads: tuple[Callable[[str], object], ...] = (
                notebook.get_entry,
                notebook.get,
                lambda key: notebook.get_many(list(dict.fromkeys([key, *self._keys(4)]))),
            )
            rng.choices(reads, (12, 4, 1))[0](self._key())
            return
        writes: tuple[tuple[float, Callable[[], object]], ...] = (
            (32, lambda: notebook.set(self._key())),
            (6, lambda: notebook.set(self._key(), ttl=rng.uniform(0.3, LONGEST_TTL))),
            (3, lambda: notebook.set_acknowledged(self._key())),
            (1, lambda: notebook.delete_acknowledged(self._key())),
            (7, lambda: notebook.set_many(self._keys(5))),
            (14, self._compare_and_set),
            (3, lambda: notebook.compare_and_set(self._key(), MISSING)),
            (11, lambda: notebook.delete([self._key()])),
            (2, lambda: notebook.delete(self._keys(3))),
            (12, lambda: notebook.update(self._key())),
            (9, lambda: notebook.touch(self._key())),
            (2, lambda: notebook.touch(self._key(), ttl=rng.uniform(0.3, LONGEST_TTL))),
            (1.6, lambda: notebook.invalidate_tag(rng.choice(TAGS))),
            (0.4, notebook.clear),
        )
        rng.choices([write for _, write in writes], [weight for weight, _ in writes])[0]()

    def _compare_and_set(self) -> None:
        key = self._key()
        entry = self._notebook.get_entry(key)
        if entry is None:
            self._notebook.compare_and_set(key, MISSING)
            return
        if self._rng.random() < 0.3:
            time.sleep(self._rng.uniform(0, 0.02))  # lets others be faster
        if self._rng.random() < 0.85:
            self._notebook.compare_and_set(key, entry.version)
        else:
            self._notebook.delete_if(key, entry.version)


class Observer:
    """Notes events as they are made, in their order, and counters."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._events: deque[tuple[float, Event]] = deque()
        self._lags: list[float] = []
        emit = EventHub.emit

        def observed(hub: EventHub, event: Event, /) -> None:
            self._events.append((clock(), event))
            emit(hub, event)

        EventHub.emit = observed  # type: ignore[method-assign]

    def attach(self, cache: CoherentCache) -> None:
        """Note a cache; let it make the events that come per message."""
        self._cache = cache
        cache.on_event(lambda _event: None)

    def flush(self) -> None:
        """Write out what was noted of events."""
        lines: list[list[Any]] = []
        while self._events:
            moment, event = self._events.popleft()
            if event.name not in QUIET_EVENTS:
                lines.append(["e", moment, event.name, event.as_dict()])
            elif (lag := getattr(event, "lag_ms", None)) is not None:
                self._lags.append(round(lag, 2))
        self._log.write(*lines)

    def sample(self) -> None:
        self.flush()
        stats = self._cache.stats().as_dict()
        lags, self._lags = self._lags, []
        bound = self._cache.staleness_bound()
        self._log.write(
            ["s", clock(), {name: stats[name] for name in COUNTERS}
             | {"state": self._cache.state, "bound": round(bound, 4), "lags": lags}]
        )  # fmt: skip


def work(*, folder: str, name: str, url: str, seed: str, threads: int, options: dict[str, Any]) -> None:
    """Read and write until the file ``stop`` is there; after ``quiet`` show the local tier in ``end-<name>``."""
    place = Path(folder)
    log = Log(place / f"worker-{name}")
    observer = Observer(log)
    loop = LoopThread()
    with CoherentCache(url, instance_id=name, **options) as cache:
        observer.attach(cache)
        aio = BlockingCache(cache.aio, loop)
        notebook = Notebook(cache, aio, log)
        stop = threading.Event()
        # Both fronts, on one core.
        mixtures = [
            Mixture(notebook, (cache, aio)[number % 2], Random(f"{seed}-{name}-{number}"), stop)
            for number in range(threads)
        ]
        running = [threading.Thread(target=mixture.run) for mixture in mixtures]
        for thread in running:
            thread.start()
        try:
            while not (place / "stop").exists() and not any(mixture.error for mixture in mixtures):
                observer.sample()
                if cache.state == "coherent":
                    (place / f"ready-{name}").touch()
                time.sleep(SAMPLE)
        finally:
            stop.set()
            for thread in running:
                thread.join()
        if errors := [mixture.error for mixture in mixtures if mixture.error]:
            raise errors[0]
        observer.sample()
        (place / f"stopped-{name}").touch()
        wait_until((place / "quiet").exists, END_TIMEOUT, "everybody has stopped")
        held = _held(cache)
        # What has expired is removed when somebody asks for it, or by one of the next heartbeats.
        held = {key: entry for key, entry in held.items() if cache.get_entry(key) is not None}
        observer.sample()
        end = {"held": held, "stats": cache.stats().as_dict()}
        (place / f"end-{name}.part").write_text(json.dumps(end))
        (place / f"end-{name}.part").rename(place / f"end-{name}")
        aio.close()
    loop.stop()
    log.close()


if __name__ == "__main__":
    work(**json.loads(sys.argv[1]))
