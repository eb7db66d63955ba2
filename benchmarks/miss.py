"""What does a read cost that the local tier cannot serve, next to a bare GET with redis-py?"""

from __future__ import annotations

from typing import Final

from bench import Bench, main
from measure import Row, batch, compare, interleave

QUESTION: Final = "miss"
LIMIT: Final = 1.35
"""Times a bare GET."""

VALUE: Final = b"v" * 500
KEYS: Final = [f"product:{number}" for number in range(200)]


def measure(bench: Bench) -> list[Row]:
    """Measure reads of 500 bytes that are only in Redis; the local tier is emptied before each batch."""
    client, cache, remote = bench.client(), bench.cache(), bench.cache(local_enabled=False)
    bare = [f"{bench.namespace}:{key}" for key in KEYS]
    client.mset(dict.fromkeys(bare, VALUE))
    remote.set_many(dict.fromkeys(KEYS, VALUE), ttl=None)
    taken = interleave(
        {
            "GET": batch(client.get, bare),
            "default cache, with fill": batch(cache.get, KEYS, before=cache.clear_local),
            "local_enabled=False": batch(remote.get, KEYS),
        },
        bench.times(120, 15),
    )
    return [
        compare(QUESTION, name, series, "GET", taken["GET"], unit="us", limit=LIMIT)
        for name, series in taken.items()
        if name != "GET"
    ]


if __name__ == "__main__":
    main(measure)
