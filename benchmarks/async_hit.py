"""What does a hit in the local tier cost a task on an event loop, next to the same hit of a thread?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from bench import Bench, main
from local_hit import KEYS, RECORD, hits
from measure import Row, Subject, compare, interleave

QUESTION: Final = "async_hit"
LIMIT: Final = 2.0
"""Times the hit of a thread."""


def measure(bench: Bench) -> list[Row]:
    """Measure hits of both fronts on one core, each walking through 1,000 keys; the walk is part of the time."""
    cache = bench.cache(copy_values=False)
    texts, records = ([f"{kind}:{key}" for key in KEYS] for kind in ("str", "dict"))
    for keys, value in ((texts, "a value"), (records, RECORD)):
        cache.set_many(dict.fromkeys(keys, value))
        assert cache.warm(keys) == len(KEYS)
    repeat = bench.times(20, 5)

    async def load(_context: Any) -> None:
        raise AssertionError("it is a hit")

    subjects = {
        "get": (hits(cache.get, texts, repeat), awaited(cache.aio.get, texts, repeat)),
        "get of a dict": (hits(cache.get, records, repeat), awaited(cache.aio.get, records, repeat)),
        "get_or_set": (
            hits(lambda key: cache.get_or_set(key, load), texts, repeat),
            awaited(lambda key: cache.aio.get_or_set(key, load), texts, repeat),
        ),
    }
    taken = interleave(
        {
            f"{case}, {front}": subject
            for case, pair in subjects.items()
            for front, subject in zip(FRONTS, pair, strict=True)
        },
        bench.times(80, 20),
    )
    return [
        compare(
            QUESTION, case, taken[f"{case}, task"], "thread", taken[f"{case}, thread"], unit="ns",
            limit=LIMIT if case != "get_or_set" else None,
        )
        for case in subjects
    ]  # fmt: skip


FRONTS: Final = ("thread", "task")


def awaited(call: Callable[[Any], Awaitable[object]], arguments: list[Any], repeat: int) -> Subject:
    """Return a subject that awaits a call with every argument, ``repeat`` times; as ``hits`` does with plain calls."""

    async def walk() -> float:
        started = time.thread_time()
        for _ in range(repeat):
            for argument in arguments:
                await call(argument)
        return (time.thread_time() - started) / (repeat * len(arguments))

    return lambda: asyncio.run(walk())


if __name__ == "__main__":
    main(measure)
