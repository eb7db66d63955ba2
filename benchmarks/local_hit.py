"""What does a hit in the local tier cost, next to functools.lru_cache, a dict, and msgpack alone?"""

from __future__ import annotations

import functools
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
    """Measure hits: every subject walks through 1,000 keys, and the walk is part of its time."""
    copying, sharing = bench.cache(), bench.cache(copy_values=False)
    texts, numbers, records = ([f"{kind}:{key}" for key in KEYS] for kind in ("str", "int", "dict"))
    for keys, value in ((texts, "a value"), (numbers, 12_345), (records, RECORD)):
        copying.set_many(dict.fromkeys(keys, value))
        assert copying.warm(keys) == sharing.warm(keys) == len(KEYS)
    packed = msgpack.packb(RECORD)

    # What it is compared with holds as many objects: else it would be served from a smaller part of the memory.
    @functools.lru_cache(maxsize=10_000)
    def memoised(key: str) -> Any:
        return msgpack.unpackb(packed) if key.startswith("dict") else f"value of {key}"

    plain = {key: memoised(key) for key in (*texts, *records)}

    repeat = bench.times(20, 5)
    taken = interleave(
        {
            "str": hits(copying.get, texts, repeat),
            "int": hits(copying.get, numbers, repeat),
            "dict, copy_values=False": hits(sharing.get, records, repeat),
            "dict, copied": hits(copying.get, records, max(1, repeat // 4)),
            "lru_cache": hits(memoised, texts, repeat),
            "lru_cache of dicts": hits(memoised, records, repeat),
            "dict.get": hits(plain.get, texts, repeat),
            "dict.get of dicts": hits(plain.get, records, repeat),
            "unpackb": hits(msgpack.unpackb, [packed] * len(KEYS), max(1, repeat // 4)),
        },
        bench.times(80, 20),
    )
    rows = []
    for case, suffix in (("str", ""), ("int", ""), ("dict, copy_values=False", " of dicts")):
        for name, limit in (("lru_cache", LIMIT), ("dict.get", None)):
            reference = f"{name}{suffix}"
            rows.append(compare(QUESTION, case, taken[case], reference, taken[reference], unit="ns", limit=limit))
    case = f"dict of {len(packed)} bytes, copied"
    rows.append(compare(QUESTION, case, taken["dict, copied"], "msgpack.unpackb", taken["unpackb"], unit="ns"))
    counted = system_calls(bench)
    if counted is not None:
        rows.append(Row(QUESTION, f"system calls in {TRACED_HITS:,} hits", counted, "calls", limit=0))
    return rows


def hits(call: Callable[[Any], object], arguments: list[Any], repeat: int) -> Subject:
    """Return a subject that calls with every argument, ``repeat`` times.

    In CPU time of this thread: nothing here waits, so that what others do on the machine need not count.
    """

    def subject() -> float:
        started = time.thread_time()
        for _ in range(repeat):
            for argument in arguments:
                call(argument)
        return (time.thread_time() - started) / (repeat * len(arguments))

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
        keys = [f"str:{key}" for key in KEYS]
        cache.warm(keys)
        Path(BEGIN).exists()
        for _ in range(TRACED_HITS // len(keys)):
            for key in keys:
                cache.get(key)
        Path(END).exists()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--hits"]:
        only_hits(*sys.argv[2:])
    else:
        main(measure)
