"""A FastAPI service: two uvicorn workers behind one port, over a SQLite table.

    python examples/fastapi_service.py [--seconds 60, and open the address that it prints: /docs]

Each answer says which worker gave it, and where the product came from. A product is read from the table once for both
workers, then from their memory. A price is changed through whichever worker answers; when that one has answered, the
other one does not serve the old price any more.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

from fastapi import FastAPI, HTTPException
from support import (
    CACHE_OPTIONS,
    answers,
    ask,
    check,
    free_port,
    make_database,
    parser,
    read_product,
    running,
    say,
    wait_until,
    write_price,
)

from coherent_cache import MISSING, AsyncCoherentCache, CoherentCache
from coherent_cache.contrib.fastapi import CacheDependency, cache_lifespan

NAMESPACE = "service"


def make_cache():
    return AsyncCoherentCache(os.environ["EXAMPLE_URL"], namespace=NAMESPACE, **CACHE_OPTIONS)


app = FastAPI(lifespan=cache_lifespan(make_cache))


@app.get("/products/{number}")
async def product(number: int, cache: CacheDependency) -> dict[str, object]:
    def load():  # no coroutine function: it runs in a thread
        row = read_product(os.environ["EXAMPLE_DATABASE"], number)
        return MISSING if row is None else row

    found = await cache.get_or_set_entry(f"product:{number}", load, ttl=60, negative_ttl=5)
    if found.value is MISSING:
        raise HTTPException(404, "there is no such product")
    return {**found.value, "worker": os.getpid(), "from": found.tier}


@app.put("/products/{number}/price")
async def change(number: int, price: int, cache: CacheDependency) -> dict[str, int]:
    # First the table, then the cache: a load that had read the old price before is not stored.
    await asyncio.to_thread(write_price, os.environ["EXAMPLE_DATABASE"], number, price)
    await cache.delete(f"product:{number}", wait=10)
    return {"worker": os.getpid()}


def main():
    arguments = parser(__doc__, seconds=2).parse_args()
    address = f"http://127.0.0.1:{(port := free_port())}"
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "shop.sqlite3"
        make_database(database)
        # An embedded server is started by the first cache that names it, and lives as long as this process.
        with CoherentCache(arguments.url, namespace=NAMESPACE, **CACHE_OPTIONS) as own:
            own.clear()
            environment = os.environ | {"EXAMPLE_URL": arguments.url, "EXAMPLE_DATABASE": str(database)}
            uvicorn = ["-m", "uvicorn", "fastapi_service:app", "--app-dir", str(Path(__file__).parent)]
            options = ["--workers", "2", "--port", str(port), "--log-level", "warning"]
            with running([*uvicorn, *options], environment=environment):
                play(address, own.server, arguments.seconds)
    say("coherent")


def play(address, server, seconds):
    wait_until(lambda: answers(f"{address}/products/1"), "the service answers")
    say(f"two workers behind {address}, with one cache at {server}")

    seen, workers = Counter(), set()

    def look(expected):
        told = ask("GET", f"{address}/products/1")
        if told["price"] != expected:
            raise SystemExit(f"NOT COHERENT: the price is {expected}, and a worker told {told}")
        seen[told["from"]] += 1
        workers.add(told["worker"])

    def both_have_answered():
        look(100)
        return len(workers) == 2

    wait_until(both_have_answered, "both workers answer")
    check("both workers answered, and the table was read once", seen["loader"], 0)  # by the first request of all

    end, price, writers = time.monotonic() + seconds, 100, Counter()
    while len(writers) < 2 or time.monotonic() < end:
        price += 1
        writers[ask("PUT", f"{address}/products/1/price?price={price}")["worker"]] += 1
        for _ in range(10):
            look(price)
    check(f"each of {price - 100} prices, written through either worker, was told by both at once", len(writers), 2)
    check("the table was read once for each of them", seen["loader"], price - 100)
    say(f"  {seen.total()} answers came from: {dict(seen)}")


if __name__ == "__main__":
    main()
