"""How fast are other caches for Python, in the same process and the same rounds?

Needs what it compares with: ``pip install cachetools cachebox lru-dict theine coredis cashews aiocache dogpile.cache
hydict``; what is not there is left out, and said.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from contextlib import ExitStack, suppress
from typing import Any, Final

from bench import Bench, main
from measure import SETTLE, Row, Subject, compare, interleave
from rivals import RIVALS, Rival

QUESTION: Final = "comparison"
KEYS: Final = [f"product:{number}" for number in range(1000)]
TEXT: Final = "a value of twenty-five b."
RECORD: Final = {
    "id": 12345, "name": "Alice Example", "email": "alice@example.com", "tags": ["a", "b", "c"], "active": True,
    "score": 12.5, "address": {"city": "Berlin", "zip": "10115", "street": "Unter den Linden 77"}, "visits": 981,
}  # fmt: skip
VALUES: Final = {"str": TEXT, "dict of 150 bytes": RECORD, "10 KB": "x" * 10_000}
OURS: Final = "coherent-cache"


def measure(bench: Bench) -> list[Row]:
    """Measure local hits of three values, and for those with Redis a mixed load; a row compares a rival with ours."""
    rows: list[Row] = []
    with asyncio.Runner() as runner, ExitStack() as stack:
        rivals: dict[str, Rival] = {}
        for name, open_ in RIVALS.items():
            try:
                opened = stack.enter_context(open_(bench.url, f"{bench.namespace}-{len(rivals)}"))
                _try_out(runner, opened)
            except Exception as error:  # noqa: BLE001  # whatever another library raises
                print(f"left out: {name}: {type(error).__name__}: {error}", file=sys.stderr)
            else:
                rivals[name] = opened
        for case, value in VALUES.items():
            rows += _hits(bench, runner, rivals, case, value)
        rows += _mixed(bench, runner, rivals)
        runner.run(_close(rivals))
    return rows


def _try_out(runner: asyncio.Runner, each: Rival) -> None:
    """Write and read once: some need another server than there is."""

    async def both() -> Any:
        await each.put("first", 1)
        return await each.get("first")

    if each.asynchronous:
        assert runner.run(both()) == 1
    else:
        each.put("first", 1)
        assert each.get("first") == 1


def _hits(bench: Bench, runner: asyncio.Runner, rivals: dict[str, Rival], case: str, value: Any) -> list[Row]:
    fast = {name: each for name, each in rivals.items() if each.kind != "remote"}
    keys = [f"{case}:{key}".replace(" ", "-") for key in KEYS[: bench.times(1000, 100)]]
    subjects = {name: _reads(runner, each, keys, value) for name, each in fast.items()}
    return _table(interleave(subjects, bench.times(20, 2)), f"hit, {case}", "ns")


def _reads(runner: asyncio.Runner, each: Rival, keys: list[str], value: Any) -> Subject:
    async def prepare() -> None:
        for key in keys:
            await each.put(key, value)
        for key in keys:
            assert await each.get(key) == value

    async def read() -> float:
        get = each.get
        started = time.perf_counter()
        for key in keys:
            await get(key)
        return (time.perf_counter() - started) / len(keys)

    if each.asynchronous:
        runner.run(prepare())
        return lambda: runner.run(read())
    for key in keys:
        each.put(key, value)
    for key in keys:
        assert each.get(key) == value

    def subject() -> float:
        get = each.get
        started = time.perf_counter()
        for key in keys:
            get(key)
        return (time.perf_counter() - started) / len(keys)

    return subject


def _mixed(bench: Bench, runner: asyncio.Runner, rivals: dict[str, Rival]) -> list[Row]:
    """Measure one process with 98 % reads and 2 % writes of keys as the world uses them (Zipf)."""
    draw = random.Random(7)
    count = bench.times(3000, 200)
    keys = draw.choices(KEYS, [1 / (rank + 1) for rank in range(len(KEYS))], k=count)
    script = [(key, draw.random() < 0.02) for key in keys]
    shared = {name: each for name, each in rivals.items() if each.kind != "one process"}
    subjects = {name: _plays(runner, each, script) for name, each in shared.items()}
    return _table(interleave(subjects, bench.times(10, 1)), "98 % reads, Zipf", "us")


def _plays(runner: asyncio.Runner, each: Rival, script: list[tuple[str, bool]]) -> Subject:
    async def prepare() -> None:
        for key in KEYS:
            await each.put(key, RECORD)

    async def play() -> float:
        started = time.perf_counter()
        for key, writes in script:
            if writes:
                await each.put(key, RECORD)
            else:
                await each.get(key)
        return (time.perf_counter() - started) / len(script)

    if each.asynchronous:
        runner.run(prepare())
        return lambda: runner.run(play())
    for key in KEYS:
        each.put(key, RECORD)

    def subject() -> float:
        time.sleep(SETTLE)
        started = time.perf_counter()
        for key, writes in script:
            if writes:
                each.put(key, RECORD)
            else:
                each.get(key)
        return (time.perf_counter() - started) / len(script)

    return subject


def _table(taken: dict[str, list[float]], case: str, unit: str) -> list[Row]:
    ours = taken[OURS]
    return [
        compare(QUESTION, f"{case}: {name}", series, OURS, ours, unit=unit)
        for name, series in sorted(taken.items(), key=lambda item: sorted(item[1])[len(item[1]) // 2])
        if name != OURS
    ]


async def _close(rivals: dict[str, Rival]) -> None:
    for each in rivals.values():
        if each.end is not None:
            with suppress(Exception):  # coredis' pool insists on the task that opened it
                await each.end()
    pending = asyncio.all_tasks() - {asyncio.current_task()}
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)


if __name__ == "__main__":
    main(measure)
