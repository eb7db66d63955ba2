"""A pair of Celery workers, one with processes and one with threads: what a task of one writes, tasks of the other see.

    python examples/celery_pair.py

The workers take their tasks from two queues, "processes" and "threads" (messages and results are files in a temporary
folder, so no broker is needed). Prices are in a SQLite table, and cached. When a task of one worker has changed one, no
process serves an older one any more: the next task reads the new price, wherever it runs, and mostly from memory.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from importlib import import_module
from pathlib import Path

from support import CACHE_OPTIONS, check, make_database, parser, running, say

from coherent_cache import CoherentCache

WORKERS = {"processes": "prefork", "threads": "threads"}
HERE = Path(__file__).parent


def worker(name, pool):
    options = [
        "--concurrency",
        "2",
        "--without-gossip",
        "--without-mingle",
        "--without-heartbeat",
        "--loglevel",
        "ERROR",
    ]
    return ["-m", "celery", "--app", "celery_tasks", "--workdir", str(HERE), "--quiet", "worker", "--queues", name,
            "--hostname", f"{name}@localhost", "--pool", pool, *options]  # fmt: skip


def run(task, queue, *arguments):
    return task.apply_async(arguments, queue=queue).get(timeout=60, interval=0.01)


def main():
    arguments = parser(__doc__, seconds=2).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("messages", "control"):
            (Path(folder) / name).mkdir()
        make_database(Path(folder) / "shop.sqlite3")
        os.environ |= {"EXAMPLE_URL": arguments.url, "EXAMPLE_FOLDER": folder}
        # An embedded server is started by the first cache that names it, and lives as long as this process.
        with CoherentCache(arguments.url, namespace="celery", **CACHE_OPTIONS) as own:
            own.clear()
            with running(*(worker(name, pool) for name, pool in WORKERS.items()), environment=dict(os.environ)):
                say(f"two workers at {own.server} start")
                play(import_module("celery_tasks"), arguments.seconds)
    say("coherent")


def play(tasks, seconds):
    first = [run(tasks.price, name, 1)["price"] for name in WORKERS]
    check("both tell the same price", first, [100, 100])

    names, tiers, pids = list(WORKERS), Counter(), set()
    end, amount, rounds = time.monotonic() + seconds, 100, 0
    while rounds < 2 or time.monotonic() < end:
        writer, reader = names[rounds % 2], names[(rounds + 1) % 2]
        amount += 1
        run(tasks.change, writer, 1, amount)
        for _ in range(4):
            told = run(tasks.price, reader, 1)
            if told["price"] != amount:
                raise SystemExit(f"NOT COHERENT: {writer} wrote {amount}, {reader} told {told}")
            tiers[told["tier"]] += 1
            pids.add(told["pid"])
        rounds += 1
    check(f"each of {rounds} prices that one worker wrote was told by the other", True, True)
    say(f"  {len(pids)} processes told prices, which came from: {dict(tiers)}")


if __name__ == "__main__":
    main()
