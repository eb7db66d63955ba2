"""How much memory does an entry take, and how long does the import?"""

from __future__ import annotations

import gc
import subprocess
import sys
import tracemalloc
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from bench import Bench, main, ready_cache
from measure import Row, compare, interleave
from peers import READY, Peer

QUESTION: Final = "memory"
ENTRIES: Final = 20_000
VALUE_BYTES: Final = 100
STATM: Final = Path("/proc/self/statm")
PAGE: Final = 4096


def measure(bench: Bench) -> list[Row]:
    """Measure a tier of 20,000 entries in processes of their own, then imports in many."""
    cache = bench.cache(local_enabled=False)
    keys = _keys()
    for start in range(0, ENTRIES, 1000):
        cache.set_many({key: _value(key) for key in keys[start : start + 1000]}, ttl=None)
    with Peer(fill, bench.url, bench.namespace, "allocated") as traced:
        allocated, accounted, plain = traced.ask("figures")
    rows = [
        Row(QUESTION, "per entry, allocated (tracemalloc)", allocated, "bytes", "plain dict", plain, allocated / plain),
        Row(QUESTION, "per entry, as stats().bytes accounts", accounted, "bytes"),
    ]
    if STATM.exists():
        with Peer(fill, bench.url, bench.namespace, "resident") as counted:
            rows.append(Row(QUESTION, "per entry, resident", counted.ask("figures")[0], "bytes"))
    modules = ("coherent_cache", "redis")
    taken = interleave({name: _importer(name) for name in modules}, bench.times(30, 3))
    rows.append(compare(QUESTION, "import", taken["coherent_cache"], "import redis", taken["redis"], unit="ms"))
    return rows


def fill(pipe: Connection, url: str, namespace: str, kind: str) -> None:
    """Be the process that fills its tier: by what Python allocates, or by the pages that the process holds."""
    keys = _keys()
    with ready_cache(url, namespace, max_entries=ENTRIES) as cache:
        cache.warm(keys[:1])
        cache.clear_local()
        if kind == "allocated":
            tracemalloc.start()
        before = _used(kind)
        # Keys as requests bring them: strings of their own.
        for start in range(0, ENTRIES, 1000):
            cache.warm("".join(key) for key in map(list, keys[start : start + 1000]))
        taken = (_used(kind) - before) / ENTRIES
        stats = cache.stats()
        assert stats.size == ENTRIES
        pipe.send(READY)
        before = _used(kind)
        plain = {"".join(list(key)): _value(key) for key in keys}
        plain_taken = (_used(kind) - before) / len(plain)
        tracemalloc.stop()
        pipe.recv()
        pipe.send((taken, stats.bytes / stats.size, plain_taken))
        pipe.recv()


def _used(kind: str) -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0] if kind == "allocated" else int(STATM.read_text().split()[1]) * PAGE


def _keys() -> list[str]:
    return [f"product:{number:012d}" for number in range(ENTRIES)]


def _value(key: str) -> bytes:
    return key.encode().ljust(VALUE_BYTES, b".")


def _importer(name: str) -> Any:
    program = f"import time; started = time.perf_counter(); import {name}; print(time.perf_counter() - started)"

    def subject() -> float:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        return float(done.stdout)

    return subject


if __name__ == "__main__":
    main(measure)
