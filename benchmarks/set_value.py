"""What does a write cost, next to a bare SET of the same bytes with redis-py?"""

from __future__ import annotations

from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Final

from bench import Bench, main, ready_cache
from measure import Row, batch, compare, interleave
from peers import READY, Peer

QUESTION: Final = "set"
LIMIT: Final = 1.35
"""Times a bare SET."""

VALUE: Final = b"v" * 500
KEYS: Final = [f"product:{number}" for number in range(200)]
TTL_MS: Final = 300_000
PEERS: Final = (1, 3)


def measure(bench: Bench) -> list[Row]:
    """Measure writes of 500 bytes: alone, then with other processes that subscribe."""
    client = bench.client()
    subjects = {
        "SET PX": batch(lambda key: client.set(key, VALUE, px=TTL_MS), [f"{bench.namespace}:{key}" for key in KEYS]),
        "default cache": batch(_setter(bench.cache()), KEYS),
        "local_enabled=False": batch(_setter(bench.cache(local_enabled=False)), KEYS),
    }
    rounds = bench.times(120, 15)
    rows = _rows(interleave(subjects, rounds), "")
    with ExitStack() as stack:
        running = 0
        for count in PEERS:
            for _ in range(count - running):
                stack.enter_context(Peer(subscribe, bench.url, bench.namespace))
            running = count
            rows += _rows(interleave(subjects, rounds), f", {count} other process{'es' * (count > 1)} subscribed")
    return rows


def subscribe(pipe: Connection, url: str, namespace: str) -> None:
    """Be another process of the fleet, that holds every key."""
    with ready_cache(url, namespace) as cache:
        cache.warm(KEYS)
        pipe.send(READY)
        pipe.recv()


def _setter(cache):
    return lambda key: cache.set(key, VALUE)


def _rows(taken: dict[str, list[float]], where: str) -> list[Row]:
    return [
        compare(QUESTION, name + where, series, "SET PX", taken["SET PX"], unit="us", limit=LIMIT)
        for name, series in taken.items()
        if name != "SET PX"
    ]


if __name__ == "__main__":
    main(measure)
