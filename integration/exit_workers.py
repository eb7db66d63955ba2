"""Workers that end, or whose children end, while the cache is in use: pools, signals, the end of the interpreter."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

from coherent_cache import CoherentCache
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
