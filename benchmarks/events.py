"""What do events cost: a write while the log is at INFO, and the subscriber's thread at INFO and at DEBUG?"""

from __future__ import annotations

import logging
import time
from typing import Final

from bench import Bench, main
from measure import SETTLE, Row, compare

from coherent_cache import CoherentCache
from coherent_cache.core.shard import Shard
from coherent_cache.event_hub import EventHub
from coherent_cache.events import Event
from coherent_cache.logs import DEBUG_LINES_PER_WINDOW, LOGGER_NAME, EventLog
from coherent_cache.wire import Kind, Message, decode_message, encode_message

QUESTION: Final = "events"
WRITES: Final = 25
LINES: Final = DEBUG_LINES_PER_WINDOW
LIMIT: Final = 1.03
"""Most that events at INFO may add to a write."""


class Silence(EventHub):
    """A hub that takes nothing and has nothing to do: events switched off altogether."""

    waiting = False

    def emit(self, event: Event, /) -> None:
        """Forget it."""

    def drain(self) -> None:
        """Do nothing."""


def measure(bench: Bench) -> list[Row]:
    """Time writes with and without events, then the application of messages with and without lines."""
    logging.getLogger(LOGGER_NAME).addHandler(Sink())
    return [*writes(bench), *messages(bench)]


class Sink(logging.Handler):
    """Formats lines, as handlers do, and writes them nowhere."""

    def emit(self, record: logging.LogRecord) -> None:
        """Format it."""
        self.format(record)


# -- writes ------------------------------------------------------------------------------------------------------------


def writes(bench: Bench) -> list[Row]:
    """Write by turns through caches that differ in nothing but their events, all of one process."""
    rows = []
    for case, options in (("a write", {}), ("a write, no local tier", {"local_enabled": False})):
        caches = {
            "off": silent(bench.cache(suffix="-off", **options)),
            "INFO": bench.cache(suffix="-info", **options),
            "DEBUG": bench.cache(suffix="-debug", **options),
        }
        taken: dict[str, list[float]] = {name: [] for name in caches}
        names = list(caches)
        for number in range(bench.times(1200, 80)):
            for name in names[number % 3 :] + names[: number % 3]:
                taken[name].append(timed(caches[name], name))
        rows.append(
            compare(QUESTION, f"{case}, INFO", taken["INFO"], "no events", taken["off"], unit="us", limit=LIMIT)
        )
        rows.append(compare(QUESTION, f"{case}, DEBUG", taken["DEBUG"], "no events", taken["off"], unit="us"))
    return rows


def silent(cache: CoherentCache) -> CoherentCache:
    """Switch a cache's events off."""
    runtime = cache._runtime
    hub = Silence(EventLog(), {}, clock=time.monotonic)
    runtime.events = hub
    runtime._subscriber._events, runtime._subscriber._emit = hub, hub.emit
    return cache


def timed(cache: CoherentCache, level: str) -> float:
    """Return the seconds of one write, with the log at this level."""
    logging.getLogger(LOGGER_NAME).setLevel("INFO" if level == "off" else level)
    cache._runtime.instance.set_trace(level == "DEBUG")
    time.sleep(SETTLE)
    started = time.perf_counter()
    for number in range(WRITES):
        cache.set(f"k{number % 10}", number)
    return (time.perf_counter() - started) / WRITES


# -- the subscriber's thread -------------------------------------------------------------------------------------------


def messages(bench: Bench) -> list[Row]:
    """Decode and apply messages as the subscriber's thread does, and deliver their events, if there are any."""
    runtime = bench.cache(suffix="-messages", heartbeat=600, max_staleness=3600)._runtime
    shard, hub = runtime.instance.shards[0], runtime.events
    levels = {"off": "INFO", "INFO": "INFO", "DEBUG": "DEBUG", "DEBUG in a storm": "DEBUG"}
    taken: dict[str, list[float]] = {name: [] for name in levels}
    names = list(levels)
    for number in range(bench.times(60, 6)):
        for name in names[number % 4 :] + names[: number % 4]:
            logging.getLogger(LOGGER_NAME).setLevel(levels[name])
            hub._log.summarise(None)  # a new second for the log's limit
            count = 10 * LINES if "storm" in name else LINES
            taken[name].append(applied(shard, None if name == "off" else hub, count, trace=levels[name] == "DEBUG"))
    return [
        compare(QUESTION, f"a message, {name}", taken[name], "no events", taken["off"], unit="us") for name in names[1:]
    ]


def applied(shard: Shard, hub: EventHub | None, count: int, *, trace: bool) -> float:
    """Return the seconds per message."""
    encoded = [
        encode_message(Message(Kind.SET, b"e" * 16, number, b"n" * 8, b"p" * 8, 0, "elsewhere", (f"k{number}",)))
        for number in range(1, count + 1)
    ]
    shard.trace = trace
    started = time.perf_counter()
    for data in encoded:
        shard.apply(decode_message(data), now=time.monotonic())
        if hub is not None and hub.waiting:
            hub.drain()
    taken = time.perf_counter() - started
    shard.trace = False
    return taken / count


if __name__ == "__main__":
    main(measure)
