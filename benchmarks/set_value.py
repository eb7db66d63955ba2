"""What does a write cost, next to a bare SET of the same bytes with redis-py?"""

from __future__ import annotations

import os
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
REFERENCE: Final = "SET PX"


def measure(bench: Bench) -> list[Row]:
    """Measure writes of 500 bytes: alone, then with other processes that subscribe and hold every key."""
    client, cache = bench.client(), bench.cache()
    # In a namespace of its own: the other cache would have to listen to what this one writes.
    remote = bench.cache(suffix="-remote", local_enabled=False)
    bare = [f"{bench.namespace}:{key}" for key in KEYS]
    subjects = {
        REFERENCE: batch(lambda key: client.set(key, VALUE, px=TTL_MS), bare),
        "default cache": batch(lambda key: cache.set(key, VALUE), KEYS),
        "local_enabled=False": batch(lambda key: remote.set(key, VALUE), KEYS),
    }
    rounds = bench.times(120, 20)
    rows = _rows(interleave(subjects, rounds), "", LIMIT)
    del subjects["local_enabled=False"]
    started = 0
    for count in PEERS:
        for _ in range(count - started):
            bench.open(Peer(subscribe, bench.url, bench.namespace))
        started = count
        where = f", {count} other process{'es' * (count > 1)} subscribed"
        # With fewer cores than processes (the server's and this one too) the ratio tells what the cores cost.
        enough = (os.cpu_count() or 1) >= count + 2
        rows += _rows(interleave(subjects, rounds), where, LIMIT if enough else None)
    return rows


def subscribe(pipe: Connection, url: str, namespace: str) -> None:
    """Be another process of the fleet, that holds every key."""
    with ready_cache(url, namespace) as cache:
        cache.warm(KEYS)
        pipe.send(READY)
        pipe.recv()


def _rows(taken: dict[str, list[float]], where: str, limit: float | None) -> list[Row]:
    return [
        compare(QUESTION, name + where, series, REFERENCE, taken[REFERENCE], unit="us", limit=limit)
        for name, series in taken.items()
        if name != REFERENCE
    ]


if __name__ == "__main__":
    main(measure)
