"""Reads through a cache with a local tier, checks what it gets against Redis itself, and reports.

``worker.py --healthy`` exits with 0 if the worker of this container has reported in the last ten seconds that it is
coherent, has served local hits, has applied invalidations, and has seen no violation.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from pathlib import Path

from shop import KEYS, end_when_told, open_cache, say, show_metrics

from coherent_cache import CacheUnavailable, CoherentCache

PAUSE = 0.005  # seconds between two reads
CHECK_EVERY = 10  # reads: one of them is compared with Redis
REPORT = 2.0  # seconds between two reports
MAX_STALENESS = 5.0  # seconds
LAST_REPORT = Path(tempfile.gettempdir()) / "worker-report.json"


class Checker:
    """Compares what the local tier serves with what Redis has.

    Attributes:
        violations: values that were older than the contract allows: than one served before, or outdated for too long.
        stalest: seconds that a served value had been outdated for, at most.
    """

    def __init__(self, cache: CoherentCache, redis: CoherentCache) -> None:
        self._cache = cache
        self._redis = redis
        self._served: dict[str, float] = {}
        self.violations = 0
        self.stalest = 0.0

    def read(self, key: str, *, compare: bool) -> None:
        """Read a key; ``compare`` it with Redis."""
        now = time.time()
        value = self._cache.get(key)
        if value is None:
            return
        if value["written_at"] < self._served.get(key, 0.0):
            self.violations += 1
        self._served[key] = value["written_at"]
        if compare:
            current = self._redis.get(key)
            if current is not None and current["written_at"] > value["written_at"]:
                # At least the newest value was there; one before may have been as well, so this is a lower bound.
                outdated_for = now - current["written_at"]
                self.stalest = max(self.stalest, outdated_for)
                if outdated_for > MAX_STALENESS:
                    self.violations += 1


def report(cache: CoherentCache, checker: Checker) -> None:
    """Print how it goes, and leave it for the health check."""
    stats = cache.stats()
    p99 = stats.propagation_p99
    fields = {
        "worker": cache.instance_id,
        "state": stats.state,
        "reads": stats.total_requests,
        "hit_rate": round(stats.hit_rate, 4),
        "invalidations": stats.invalidations_applied,
        "propagation_p99_ms": None if p99 is None else round(p99 * 1000, 2),
        "stalest_ms": round(checker.stalest * 1000, 2),
        "violations": checker.violations,
    }
    say(**fields)
    temporary = LAST_REPORT.with_suffix(".new")
    temporary.write_text(json.dumps(fields | {"at": time.time()}), "utf-8")
    temporary.replace(LAST_REPORT)


def healthy() -> bool:
    """Tell what the last report says."""
    try:
        last = json.loads(LAST_REPORT.read_text("utf-8"))
    except FileNotFoundError:
        return False
    return (
        time.time() - last["at"] < 10
        and last["state"] == "coherent"
        and last["hit_rate"] > 0
        and last["invalidations"] > 0
        and last["violations"] == 0
    )


def main() -> None:
    end_when_told()
    with open_cache(max_staleness=MAX_STALENESS) as cache, open_cache(local_enabled=False) as redis:
        show_metrics(cache)
        checker = Checker(cache, redis)
        next_report = time.monotonic() + REPORT
        reads = 0
        while True:
            try:
                checker.read(random.choice(KEYS), compare=reads % CHECK_EVERY == 0)
                reads += 1
            except CacheUnavailable as error:
                say(worker=cache.instance_id, error=str(error))
                time.sleep(0.5)
            if time.monotonic() >= next_report:
                report(cache, checker)
                next_report = time.monotonic() + REPORT
            time.sleep(PAUSE)


if __name__ == "__main__":
    sys.exit(0 if healthy() else 1) if "--healthy" in sys.argv else main()
