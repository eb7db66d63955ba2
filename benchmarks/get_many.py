"""What do 100 keys at once cost that the local tier cannot serve, next to a bare MGET with redis-py?"""

from __future__ import annotations

from typing import Final

from bench import Bench, main
from measure import Row, compare, interleave, one_by_one

QUESTION: Final = "get_many"
LIMIT: Final = 2.0
"""Times a bare MGET."""

VALUE: Final = b"v" * 500
KEYS: Final = [f"product:{number}" for number in range(100)]
CALLS: Final = 20
WRITTEN_ONE_BY_ONE: Final = "default cache, with fill, written one by one"


def measure(bench: Bench) -> list[Row]:
    """Measure reads of 100 values of 500 bytes that are only in Redis.

    The limit is for what one ``set_many`` wrote: that has one version and expiry. What was written singly costs more.
    """
    client, cache, remote = bench.client(), bench.cache(), bench.cache(local_enabled=False)
    single = bench.cache(suffix="-single")
    bare = [f"{bench.namespace}:{key}" for key in KEYS]
    client.mset(dict.fromkeys(bare, VALUE))
    remote.set_many(dict.fromkeys(KEYS, VALUE), ttl=None)
    for key in KEYS:
        single.set(key, VALUE, ttl=None)
    assert len(cache.get_many(KEYS)) == len(remote.get_many(KEYS)) == len(KEYS)

    def empty() -> None:
        cache.clear_local()
        single.clear_local()

    # The emptying is not timed; all do it, so that all have the same work between two calls.
    taken = interleave(
        {
            "MGET": one_by_one(lambda: client.mget(bare), CALLS, before=empty),
            "default cache, with fill": one_by_one(lambda: cache.get_many(KEYS), CALLS, before=empty),
            WRITTEN_ONE_BY_ONE: one_by_one(lambda: single.get_many(KEYS), CALLS, before=empty),
            "local_enabled=False": one_by_one(lambda: remote.get_many(KEYS), CALLS, before=empty),
        },
        bench.times(200, 30),
    )
    return [
        compare(
            QUESTION,
            f"{len(KEYS)} keys, {name}",
            series,
            "MGET",
            taken["MGET"],
            unit="us",
            limit=None if name == WRITTEN_ONE_BY_ONE else LIMIT,
        )
        for name, series in taken.items()
        if name != "MGET"
    ]


if __name__ == "__main__":
    main(measure)
