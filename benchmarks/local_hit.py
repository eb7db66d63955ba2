"""What does a hit in the local tier cost, next to functools.lru_cache, a dict, and msgpack alone?"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgpack
from bench import Bench, main, ready_cache
from measure import Row, Subject, compare, interleave

QUESTION: Final = "local_hit"
LIMIT: Final = 3.5
"""Times functools.lru_cache."""

KEYS: Final = [f"product:{number}" for number in range(1000)]
RECORD: Final = {
    "id": 12345, "name": "Alice Example", "email": "alice@example.com", "tags": ["a", "b", "c"], "active": True,
    "score": 12.5, "address": {"city": "Berlin", "zip": "10115", "street": "Unter den Linden 77"}, "visits": 981,
}  # fmt: skip
"""About 150 bytes of msgpack."""

TRACED_HITS: Final = 200_000
BEGIN: Final = "/coherent-cache-hits-begin"
END: Final = "/coherent-cache-hits-end"


def measure(bench: Bench) -> list[Row]:
    """Measure hits; every subject walks through the same 1,000 keys, and the walk itself is subtracted."""
    copying, sharing = bench.cache(), bench.cache(copy_values=False)
    for number, key in enumerate(KEYS):
        copying.set(f"s:{key}", f"value {number}")
        copying.set(f"i:{key}", number)
        copying.set(f"d:{key}", RECORD)
    for prefix in "sid":
        names = [f"{prefix}:{key}" for key in KEYS]
        assert copying.warm(names) == sharing.warm(names) == len(KEYS)
    texts, numbers, records = ([f"{prefix}:{key}" for key in KEYS] for prefix in "sid")
    plain = dict.fromkeys(texts, RECORD)
    packed = msgpack.packb(RECORD)

    @functools.lru_cache(maxsize=10_000)
    def memoised(key: str) -> Any:
        return RECORD

    repeat = bench.times(20, 5)
    empty = nothing(texts, repeat)
    taken = interleave(
        {
            "str": hits(copying.get, texts, repeat),
            "int": hits(copying.get, numbers, repeat),
            "dict, shared": hits(sharing.get, records, repeat),
            "dict, copied": hits(copying.get, records, max(1, repeat // 4)),
            "lru_cache": hits(memoised, texts, repeat),
            "dict.get": hits(plain.get, texts, repeat),
            "unpackb": hits(lambda _: msgpack.unpackb(packed), texts, max(1, repeat // 4)),
            "lambda": hits(lambda _: None, texts, repeat),
            "empty": empty,
        },
        bench.times(60, 15),
    )
    net = {
        name: [max(1e-10, a - b) for a, b in zip(series, taken["empty"], strict=True)] for name, series in taken.items()
    }
    # msgpack's call alone, without the lambda around it.
    net["unpackb"] = [a - b for a, b in zip(net["unpackb"], net["lambda"], strict=True)]
    rows = []
    for case, name in (("str", "str"), ("int", "int"), ("dict, copy_values=False", "dict, shared")):
        rows.append(compare(QUESTION, case, net[name], "lru_cache", net["lru_cache"], unit="ns", limit=LIMIT))
        rows.append(compare(QUESTION, case, net[name], "dict.get", net["dict.get"], unit="ns"))
    case = f"dict of {len(packed)} bytes, copied"
    rows.append(compare(QUESTION, case, net["dict, copied"], "msgpack.unpackb", net["unpackb"], unit="ns"))
    counted = system_calls(bench)
    if counted is not None:
        rows.append(Row(QUESTION, f"system calls in {TRACED_HITS:,} hits", counted, "calls", limit=0))
    return rows


def hits(call: Callable[[str], object], keys: list[str], repeat: int) -> Subject:
    """Return a subject that looks every key up, ``repeat`` times."""

    def subject() -> float:
        started = time.perf_counter()
        for _ in range(repeat):
            for key in keys:
                call(key)
        return (time.perf_counter() - started) / (repeat * len(keys))

    return subject


def nothing(keys: list[str], repeat: int) -> Subject:
    """Return a subject that only walks through the keys."""

    def subject() -> float:
        started = time.perf_counter()
        for _ in range(repeat):
            for _key in keys:
                pass
        return (time.perf_counter() - started) / (repeat * len(keys))

    return subject


def system_calls(bench: Bench) -> int | None:
    """Count the system calls of the thread that hits, by strace; None if that is not there or not allowed.

    A call that only hands the interpreter lock to the cache's own thread, once per heartbeat, does not count.
    """
    strace = shutil.which("strace")
    if strace is None:
        return None
    with tempfile.TemporaryDirectory(prefix="coherent-cache-benchmarks-") as folder:
        log = Path(folder) / "trace"
        command = [strace, "-f", "-o", str(log), sys.executable, __file__, "--hits", bench.url, bench.namespace]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        if done.returncode or not log.exists():
            return None
        return count_between(log.read_text("utf-8", "replace").splitlines())


def count_between(lines: list[str]) -> int:
    """Count the main thread's calls between the two marks, but for ``futex``."""
    main_thread = lines[0].split(maxsplit=1)[0]
    calls = [line.split(maxsplit=1)[1] for line in lines if line.startswith(f"{main_thread} ")]
    begin = next(at for at, call in enumerate(calls) if BEGIN in call)
    end = next(at for at, call in enumerate(calls) if END in call)
    return sum("futex" not in call for call in calls[begin + 1 : end])


def only_hits(url: str, namespace: str) -> None:
    """Be the traced process: hits between two calls that the trace shows."""
    with ready_cache(url, namespace) as cache:
        keys = [f"s:{key}" for key in KEYS]
        cache.warm(keys)
        os.path.exists(BEGIN)
        for _ in range(TRACED_HITS // len(keys)):
            for key in keys:
                cache.get(key)
        os.path.exists(END)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--hits"]:
        only_hits(*sys.argv[2:])
    else:
        main(measure)
