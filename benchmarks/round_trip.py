"""What does the local tier save where Redis is 37 ms away? 100 writes and 200 reads: without it, with two thirds of the
reads found there, and with all of them.

The table that began this project. Its authors expected 7.4 s, 2.65 s and 0.2 s for the reads.
"""

from __future__ import annotations

import time
from typing import Final

from bench import Bench, main, ready_cache
from measure import Row

from coherent_cache.testing import FaultProxy

QUESTION: Final = "round_trip"
ROUND_TRIP: Final = 0.037
"""Seconds from sending a command to its answer."""

WRITES: Final = 100
READS: Final = 200
LIMIT: Final = 1.25
"""Times what was expected: the proxy delays by some more than it is told, as real networks do."""

CASES: Final = {"no local tier": 0.0, "66 % found locally": 0.66, "all found locally": 1.0}
EXPECTED: Final = {"no local tier": 7.4, "66 % found locally": 2.65, "all found locally": 0.2}


def measure(bench: Bench) -> list[Row]:
    """Measure the three cases through a proxy that delays."""
    size = bench.times(1, 5)
    return [measure_case(bench, case, WRITES // size, READS // size) for case in CASES]


def measure_case(bench: Bench, case: str, writes: int, reads: int) -> Row:
    """Write, read, and compare the reads' time with the round trips that the misses have to pay."""
    share = CASES[case]
    keys = [f"product:{number % writes}" for number in range(reads)]
    found = round(reads * share)
    with FaultProxy(bench.url) as proxy:
        proxy.delay(ROUND_TRIP / 2)
        options = {"local_enabled": share > 0.0, "timeout": 10.0}
        with ready_cache(f"redis://127.0.0.1:{proxy.port}", bench.namespace + str(found), **options) as cache:
            for key in dict.fromkeys(keys):
                cache.set(key, key)
            # As many reads must miss as the case says; what was just missed would be found the next time.
            taken = 0.0
            for number, key in enumerate(keys):
                if share > 0.0 and number >= found:
                    cache.clear_local()
                started = time.perf_counter()
                assert cache.get(key) == key
                taken += time.perf_counter() - started
            assert share == 0.0 or cache.stats().hits == found
    expected = EXPECTED[case] * reads / READS
    return Row(
        QUESTION, f"{reads} reads, {case}", taken, "s", "expected by those who asked", expected, taken / expected,
        limit=LIMIT,
    )  # fmt: skip


if __name__ == "__main__":
    main(measure)
