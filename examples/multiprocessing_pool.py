"""A plain pool of processes: what one of them has loaded all of them have, and what one writes all of them see.

    python examples/multiprocessing_pool.py [--start-method spawn]

Four processes convert amounts. A rate takes its time to find out, so it is cached: found out once, by whichever process
needs it first, then served from the memory of each of them. Then one process changes a rate, and the others use the new
one at once.
"""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

from support import CACHE_OPTIONS, check, parser, say

from coherent_cache import CoherentCache

WORKERS = 4
RATES = {"USD": 1.10, "GBP": 0.85, "JPY": 160.0, "CHF": 0.95, "SEK": 11.5}


def start_worker(url, log, barrier):
    """In each process of the pool: make its cache. It would also begin anew if it were inherited by a fork."""
    global cache, loads, together  # noqa: PLW0603 - that is how a pool hands things on
    cache = CoherentCache(url, namespace="pool", **CACHE_OPTIONS)
    loads, together = log, barrier
    cache.wait_ready()


def find_out(currency):
    """Ask somebody far away, and note that it was done."""
    time.sleep(0.02)
    with closing(sqlite3.connect(loads)) as database, database:
        database.execute("INSERT INTO load VALUES (?, ?)", (currency, os.getpid()))
    return RATES[currency]


def convert(amount, currency):
    return amount * cache.get_or_set(f"rate:{currency}", lambda: find_out(currency), ttl=60)


def change_rate(currency, rate):
    """Return when no process serves an older rate any more: at once, normally."""
    return cache.set(f"rate:{currency}", rate, wait=10).confirmed


def one_each(currency):
    """Convert once in each process: they wait for one another, so that none takes two of these tasks."""
    together.wait()
    return os.getpid(), convert(100, currency), cache.get_entry(f"rate:{currency}").tier


def main():
    options = parser(__doc__, seconds=1)
    options.add_argument("--start-method", choices=multiprocessing.get_all_start_methods(), default=None)
    arguments = options.parse_args()
    context = multiprocessing.get_context(arguments.start_method)
    # An embedded server is started by the first cache that names it, and lives as long as this process.
    with (
        CoherentCache(arguments.url, namespace="pool", **CACHE_OPTIONS) as own,
        tempfile.TemporaryDirectory() as folder,
    ):
        own.clear()
        log = str(Path(folder) / "loads.sqlite3")
        with closing(sqlite3.connect(log)) as database, database:
            database.execute("CREATE TABLE load (currency TEXT, pid INTEGER)")

        say(f"{WORKERS} processes at {own.server} convert:")
        with context.Pool(WORKERS, start_worker, (arguments.url, log, context.Barrier(WORKERS))) as pool:
            tasks = [(number, currency) for number in range(100) for currency in RATES]
            amounts = pool.starmap(convert, tasks, chunksize=5)
            check(f"{len(tasks)} conversions", amounts, [number * RATES[currency] for number, currency in tasks])
            with closing(sqlite3.connect(log)) as database:
                loaded = Counter(currency for currency, _ in database.execute("SELECT * FROM load"))
            check(f"each of the {len(RATES)} rates was found out once, by one of them", loaded, Counter(RATES.keys()))

            end, rate, rounds = time.monotonic() + arguments.seconds, 1.0, 0
            while rounds == 0 or time.monotonic() < end:
                rate = round(rate + 0.01, 2)
                pool.apply(change_rate, ("USD", rate))
                seen = pool.map(one_each, ["USD"] * WORKERS, chunksize=1)
                if {amount for _, amount, _ in seen} != {100 * rate} or len({pid for pid, _, _ in seen}) != WORKERS:
                    raise SystemExit(f"NOT COHERENT: {rate} was written, and then seen: {seen}")
                rounds += 1
            check(f"after each of {rounds} changes all {WORKERS} processes used the new rate", True, True)
            tiers = Counter(tier for _, _, tier in seen)
            say(f"  the last time it came from: {dict(tiers)}")
    say("coherent")


if __name__ == "__main__":
    main()
