"""One worker of ``coherent-cache demo``: a process of its own that reads through a cache, writes, and checks itself.

Why no stale row can get stuck in the cache, though any number of workers read the database, change it and fill the
cache at the same time:

- Every store, whether it fills the cache after a miss or follows a change of the database, goes through
  ``cache.update(key, fn)``, which stores what ``fn`` made of the present value only if that is still the present value.
- ``fn`` never returns an older row than the one it is given. So, as long as Redis keeps what it was told, the row under
  a key never goes back.
- The classic race of cache-aside: a reader reads the database (old row), a writer changes it and tells the cache, the
  reader stores the old row. Here the reader's store finds the writer's newer row, and keeps that. This needs the
  writer to *store* the new row. Had it deleted the key, the reader would find nothing newer and store the old row; that
  takes the leases of ``get_or_set``. For the same reason rows do not expire during the demo.
- What remains is that Redis loses the newer row, with everything else, between the two steps of one fill (a restart
  without persistence). ``fn`` reads the database itself, at the last moment, and a fill reads it once more after the
  store and mends what it stored, before it returns.
- A writer that cannot reach Redis tries again until the row is published. Until then nobody was promised to see it.

What is checked: the versions of a row that one worker gets from its cache never go back, nor behind what it published
itself (each read); and a row that was read had not been replaced by a newer one, *published* more than
``max_staleness`` before the read began (one read in :data:`CHECK_EVERY`). Published means: the writer's ``update`` had
returned. Reads that were answered by the database because Redis was away are no reads of the cache; they are counted,
and not checked.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any, Final

from coherent_cache.cache import CoherentCache
from coherent_cache.cli.demo_database import Database, Row
from coherent_cache.errors import CacheUnavailable, VersionConflict
from coherent_cache.events import Event, InvalidationReceived

HEARTBEAT: Final = 0.25
"""Seconds between proofs of freshness: more often than by default, so that a short demo shows something."""

MAX_STALENESS: Final = 1.0
"""Seconds: the bound that the demo checks."""

READS_PER_SECOND: Final = 20_000
"""Reads per second and worker, if the machine can: paced, so that a demo on a laptop leaves room for its owner."""

BURST: Final = 100
"""Reads between two pauses."""

WRITES_PER_SECOND: Final = 20.0
"""Changes of the database per second and worker."""

ZIPF_EXPONENT: Final = 1.1
"""How much more often the most popular items are asked for."""

CHECK_EVERY: Final = 20
"""One read in this many is compared with the record of publications."""

CHECK_DELAY: Final = 1.0
"""Seconds until it is: by then every publication before the read has been noted."""

REPORT_SECONDS: Final = 0.25
"""Seconds between two reports."""

READY_SECONDS: Final = 0.2
"""Seconds between two looks, while a worker is not coherent yet, whether it should end."""

RETRY_SECONDS: Final = 0.05
"""Seconds between two attempts to publish what Redis did not take."""

MOST_LAGS: Final = 100_000
"""Most delays that are remembered."""


def shared_clock() -> float:
    """Return seconds on a clock that all processes of this machine share, and that nobody sets."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a worker is told.

    Attributes:
        number: of the worker, from 1.
        url: where Redis is.
        namespace: the fleet's namespace.
        instance_id: name of the worker's cache.
        database: file of the database.
        items: how many items there are.
        seed: of the worker's choices.
        ttl: seconds that rows live in Redis: longer than the demo.
        sabotage: serve the first row seen for ever, from a plain dict. So the tests see that the checks can fail.
    """

    number: int
    url: str
    namespace: str
    instance_id: str
    database: str
    items: int
    seed: int
    ttl: float
    sabotage: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """A read to be checked.

    Attributes:
        number: of the item.
        version: that was read.
        started: when the read began.
    """

    number: int
    version: int
    started: float

    def staleness(self, database: Database) -> float:
        """Return how many seconds before the read a newer version had been published; 0.0 if none had."""
        outdated_at = database.outdated_at(self.number, self.version)
        return 0.0 if outdated_at is None else max(0.0, self.started - outdated_at)


@dataclass(slots=True)
class Tally:
    """What a worker counts, besides what the cache counts.

    Attributes:
        reads: rows asked for.
        unavailable: reads that the database answered because Redis was away.
        writes: changes of the database.
        published: of those, told to the cache.
        checked: reads compared with the record of publications.
        stale: of those, older than allowed.
        backward: reads that returned an older version than the same worker had read or published before.
        worst: largest staleness in seconds.
    """

    reads: int = 0
    unavailable: int = 0
    writes: int = 0
    published: int = 0
    checked: int = 0
    stale: int = 0
    backward: int = 0
    worst: float = 0.0

    def check(self, sample: Sample, database: Database) -> None:
        """Compare a read with the record of publications."""
        staleness = sample.staleness(database)
        self.checked += 1
        self.stale += staleness > MAX_STALENESS
        self.worst = max(self.worst, staleness)


class Worker:
    """The worker."""

    def __init__(self, plan: Plan, cache: CoherentCache, database: Database) -> None:
        """Combine the parts."""
        self._plan = plan
        self._cache = cache
        self._database = database
        self._random = Random(f"{plan.seed}/{plan.number}")  # noqa: S311  # a demo's choices are no secrets
        self._popularity = list(accumulate(1 / rank**ZIPF_EXPONENT for rank in range(1, plan.items + 1)))
        self._items = range(1, plan.items + 1)
        self._keys = [f"item:{number}" for number in range(plan.items + 1)]
        self._seen = [0] * (plan.items + 1)
        self._unpublished: dict[int, float] = {}
        self._frozen: dict[int, Row] | None = {} if plan.sabotage else None
        self.samples: deque[Sample] = deque()
        self.tally = Tally()

    def work(self, ending: threading.Event, report: Callable[[], None]) -> None:
        """Read, write and check until it is time to end."""
        now = shared_clock()
        next_burst = next_report = now
        next_write = now + self._random.expovariate(WRITES_PER_SECOND)
        while not ending.is_set():
            for number in self._choose(BURST):
                self._read(number)
            now = shared_clock()
            if now >= next_write:
                next_write = now + self._random.expovariate(WRITES_PER_SECOND)
                self._change(self._choose(1)[0])
            self._publish_again(now)
            self._check(now - CHECK_DELAY)
            if now >= next_report:
                next_report = now + REPORT_SECONDS
                report()
            # A worker that is late does not hurry: the machine has no time to spare.
            next_burst = max(next_burst + BURST / READS_PER_SECOND, shared_clock())
            ending.wait(next_burst - shared_clock())

    def _choose(self, count: int) -> list[int]:
        return self._random.choices(self._items, cum_weights=self._popularity, k=count)

    # -- reading ---------------------------------------------------------------------------------------------------

    def _read(self, number: int) -> None:
        """Read an item as an application does: the cache, else the database, which then fills the cache."""
        tally = self.tally
        tally.reads += 1
        started = shared_clock()
        try:
            row: Row | None = self._cache.get(self._keys[number])
            if row is None:
                row = self._fill(number)
        except CacheUnavailable:
            tally.unavailable += 1
            self._database.read(number)
            return
        if self._frozen is not None:
            row = self._frozen.setdefault(number, row)
        version = row["version"]
        if version < self._seen[number]:
            tally.backward += 1
        else:
            self._seen[number] = version
        if tally.reads % CHECK_EVERY == 0:
            self.samples.append(Sample(number, version, started))

    def _fill(self, number: int) -> Row:
        """Bring an item into the cache; return what is there then. See the top of the file."""

        def newest(cached: Row | None) -> Row:
            return _newer(cached, self._database.read(number))

        stored: Row = self._cache.update(self._keys[number], newest, ttl=self._plan.ttl)
        while self._database.read(number)["version"] > stored["version"]:
            stored = self._cache.update(self._keys[number], newest, ttl=self._plan.ttl)
        return stored

    def _check(self, until: float) -> None:
        samples = self.samples
        while samples and samples[0].started <= until:
            self.tally.check(samples.popleft(), self._database)

    # -- writing ---------------------------------------------------------------------------------------------------

    def _change(self, number: int) -> None:
        """Change an item: first in the database, then in the cache."""
        row = self._database.change(number)
        self.tally.writes += 1
        self._publish(row)

    def _publish(self, row: Row) -> None:
        number = row["id"]
        try:
            self._cache.update(self._keys[number], lambda cached: _newer(cached, row), ttl=self._plan.ttl)
        except (CacheUnavailable, VersionConflict):
            self._unpublished[number] = shared_clock() + RETRY_SECONDS
            return
        self._database.note_published(number, row["version"], shared_clock())
        self._unpublished.pop(number, None)
        self._seen[number] = max(self._seen[number], row["version"])
        self.tally.published += 1

    def _publish_again(self, now: float) -> None:
        for number in [number for number, due in self._unpublished.items() if due <= now]:
            self._publish(self._database.read(number))


def _newer(cached: Row | None, row: Row) -> Row:
    return row if cached is None or cached["version"] < row["version"] else cached


# -- the process -------------------------------------------------------------------------------------------------------


class Reporter:
    """Tells the parent process what happens, one JSON object a line."""

    def __init__(self) -> None:
        """Make a reporter that has nothing to tell yet."""
        self.lags: deque[float] = deque(maxlen=MOST_LAGS)
        self._events: deque[dict[str, Any]] = deque()

    def hear(self, event: Event) -> None:
        """Take an event of the cache. Called in any thread."""
        if isinstance(event, InvalidationReceived):
            if event.lag_ms is not None:
                self.lags.append(event.lag_ms)
        elif event.level != "debug":
            self._events.append({"at": shared_clock(), "name": event.name, **event.as_dict()})

    def progress(self, cache: CoherentCache, tally: Tally) -> None:
        """Send the counters, and the events since the last time."""
        events = [self._events.popleft() for _ in range(len(self._events))]
        self.send(
            "progress", at=shared_clock(), tally=asdict(tally), stats=cache.stats().as_dict(), events=events,
        )  # fmt: skip

    def send(self, kind: str, **fields: Any) -> None:
        """Send a line."""
        sys.stdout.write(json.dumps({"kind": kind, **fields}) + "\n")
        sys.stdout.flush()


def _read_plan() -> Plan:
    """Read the first line that the parent process says. Not from the command line: a URL may hold a password."""
    line = bytearray()
    while not line.endswith(b"\n"):
        piece = os.read(0, 1)
        if not piece:
            raise SystemExit("this is a part of: coherent-cache demo")
        line += piece
    return Plan(**json.loads(line))


def _listen(beginning: threading.Event, ending: threading.Event) -> None:
    """Wait for what the parent process says: a line to begin, then one to end. Its own end counts as both."""
    # Not through sys.stdin: a daemon thread that holds its lock disturbs the interpreter's end.
    os.read(0, 1)
    beginning.set()
    os.read(0, 1)
    ending.set()


def main() -> int:
    """Run the worker that the parent process describes; return the exit code."""
    plan = _read_plan()
    beginning, ending = threading.Event(), threading.Event()
    threading.Thread(target=_listen, args=(beginning, ending), daemon=True).start()
    reporter = Reporter()
    cache = CoherentCache(
        plan.url,
        namespace=plan.namespace,
        instance_id=plan.instance_id,
        heartbeat=HEARTBEAT,
        max_staleness=MAX_STALENESS,
    )
    cache.on_event(reporter.hear)
    try:
        with cache, Database(Path(plan.database)) as database:
            worker = Worker(plan, cache, database)
            while not cache.wait_ready(READY_SECONDS) and not ending.is_set():
                pass  # the parent knows when it has waited long enough
            reporter.send("ready", state=cache.state)
            beginning.wait()
            worker.work(ending, lambda: reporter.progress(cache, worker.tally))
            reporter.progress(cache, worker.tally)
            # The last reads are checked by the parent, when all workers have ended.
            samples = [[sample.number, sample.version, sample.started] for sample in worker.samples]
            reporter.send("done", samples=samples, lags=list(reporter.lags))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the parent is gone: nothing left to say
    return 0


if __name__ == "__main__":
    sys.exit(main())
