"""Workers that end, or whose children end, while the cache is in use: pools, signals, the end of the interpreter."""

from __future__ import annotations

import asyncio
import atexit
import itertools
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from coherent_cache import CacheUnavailable, CoherentCache
from integration.fork_workers import KEYS, READY, busy_threads, clients, prepare
from integration.waiting import wait_until
from integration.workers import worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from integration.workers import Context

PROCESSES = 2
TASKS = 60

_cache: CoherentCache | None = None


def _open(url: str, options: dict[str, Any]) -> None:
    """Prepare a process of a pool: forked ones use the parent's object, the others make one."""
    global _cache  # noqa: PLW0603
    _cache = _cache or CoherentCache(url, **options)
    assert _cache.wait_ready(READY)


def _count(number: int) -> tuple[str, int, int]:
    """Read, and write atomically; return who did it, what was counted, and the version that is seen then."""
    assert _cache is not None
    key = f"count-{number % 3}"
    counted = _cache.update(key, lambda count: count + 1, default=0)
    entry = _cache.get_entry(key)
    assert entry is not None
    assert entry.value >= counted
    assert _cache.get(KEYS[0]) == "old"
    return _cache.instance_id, counted, entry.version.seq


def _map_pool(context: Any, url: str, options: dict[str, Any]) -> list[Any]:
    # Each process is replaced after some tasks.
    pool = context.Pool(PROCESSES, initializer=_open, initargs=(url, options), maxtasksperchild=20)
    try:
        return list(pool.imap_unordered(_count, range(TASKS)))
    finally:
        pool.close()  # leaving the block of a Pool would kill its processes
        pool.join()


def _map_executor(context: Any, url: str, options: dict[str, Any]) -> list[Any]:
    with ProcessPoolExecutor(PROCESSES, context, initializer=_open, initargs=(url, options)) as executor:
        return list(executor.map(_count, range(TASKS)))


MAPS: dict[str, Callable[[Any, str, dict[str, Any]], list[Any]]] = {"Pool": _map_pool, "Executor": _map_executor}


@worker
def use_processes(context: Context, *, url: str, options: dict[str, Any], method: str, kind: str) -> dict[str, Any]:
    """Let a pool of processes count, while threads of this process are busy."""
    global _cache  # noqa: PLW0603
    with prepare(url, options) as cache, busy_threads(cache, 2) as errors:
        _cache = cache if method == "fork" else None
        answers = MAPS[kind](multiprocessing.get_context(method), url, options)
        names = {name for name, _, _ in answers}
        for name in names:
            wait_until(lambda name=name: not clients(url, name), READY, "the connections of a process end with it")
        counts = [f"count-{number}" for number in range(3)]
        last: dict[str, int] = Counter()
        backwards = []
        for name, _, seq in answers:  # in the order of their ends: of one process, in the order in which it did them
            backwards += [(name, seq)] if seq < last[name] else []
            last[name] = seq
        expected = {key: TASKS // len(counts) for key in counts}
        wait_until(lambda: cache.get_many(counts) == expected, READY, "this process sees all that was counted")
        return {
            "processes": len(names),
            "parent": cache.instance_id in names,
            "counted": sorted(counted for _, counted, _ in answers),
            "backwards": backwards,
            "errors": list(errors),
            "resyncs": cache.stats().resyncs,
        }


# -- signals and the interpreter's end ---------------------------------------------------------------------------------

LAST_WORDS = "last words"


def _tell(key: str, seq: int) -> None:
    # Past the buffers of sys.stdout, whose lock a thread may hold when the interpreter ends.
    os.write(1, json.dumps({"key": key, "seq": seq}).encode() + b"\n")


def _write_for_ever(cache: CoherentCache, number: int) -> None:
    with suppress(CacheUnavailable):  # closed
        for turn in itertools.count():
            _tell(f"key-{number}", cache.set(f"key-{number}", turn).seq)
            cache.get_or_set(f"loaded-{number}-{turn % 50}", lambda: "value")


def _until_exit(cache: CoherentCache) -> None:
    """End by an exception in the main thread; the cache is closed when the interpreter ends."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    atexit.register(lambda: _tell(LAST_WORDS, cache.set(LAST_WORDS, "goodbye").seq))
    _write_for_ever(cache, 0)


def _until_closed(cache: CoherentCache) -> None:
    """Close the cache in the signal handler, in the middle of whatever the main thread does."""

    def end(*_: object) -> None:
        _tell(LAST_WORDS, cache.set(LAST_WORDS, "goodbye").seq)
        cache.close()
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    _write_for_ever(cache, 0)


def _until_loop_ends(cache: CoherentCache) -> None:
    """Write by tasks of an event loop, which ends as soon as it is told to."""

    async def write(number: int) -> None:
        for turn in itertools.count():
            _tell(f"task-{number}", (await cache.aio.set(f"task-{number}", turn)).seq)

    async def main() -> None:
        told = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
        tasks = [asyncio.create_task(write(number)) for number in range(3)]
        await told.wait()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        _tell(LAST_WORDS, (await cache.aio.set(LAST_WORDS, "goodbye")).seq)
        await cache.aio.close()

    asyncio.run(main())


ENDS: dict[str, Callable[[CoherentCache], None]] = {
    "exit": _until_exit, "close": _until_closed, "loop": _until_loop_ends,
}  # fmt: skip


@worker
def write_until_told(context: Context, *, url: str, options: dict[str, Any], how: str) -> None:
    """Write, and tell of each write that was acknowledged, until there is a signal to end; other threads do so too."""
    cache = CoherentCache(url, **options)
    assert cache.wait_ready(READY)
    for number in (1, 2):
        threading.Thread(target=_write_for_ever, args=(cache, number), daemon=True).start()
    ENDS[how](cache)


@worker
def wait_for_the_end(context: Context, *, url: str, options: dict[str, Any]) -> None:
    """Use the cache, and do nothing until there is a signal to end."""
    cache = CoherentCache(url, **options)
    assert cache.wait_ready(READY)
    _tell("key", cache.set("key", "value").seq)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        signal.pause()


@worker
def write_last(context: Context, *, url: str, options: dict[str, Any]) -> None:
    """Use the cache for the first time when the interpreter ends: from Python 3.12 on it starts no thread then."""
    cache = CoherentCache(url, **options)

    def say_goodbye() -> None:
        seq = cache.set(LAST_WORDS, "goodbye").seq
        assert cache.get(LAST_WORDS) == "goodbye"
        _tell(LAST_WORDS, seq)

    atexit.register(say_goodbye)
