"""Django's caches in forked workers on a real Redis: each begins anew, and all are coherent."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import json, multiprocessing, os, sys
import django
from django.conf import settings

url, namespace = sys.argv[1:]
settings.configure(CACHES={"default": {
    "BACKEND": "coherent_cache.contrib.django.CoherentCacheBackend",
    "LOCATION": url,
    "OPTIONS": {"namespace": namespace, "heartbeat": 0.1, "max_staleness": 3.0},
}})
django.setup()
from django.core.cache import cache

def work(number):
    together.wait(60)
    for _ in range(50):
        cache.incr("count")
    value = cache.get("from the parent")
    cache.set(f"from {number}", os.getpid())
    return os.getpid(), cache.coherent_cache.instance_id, value

cache.set_many({"count": 0, "from the parent": 7}, None)
context = multiprocessing.get_context("fork")
together = context.Barrier(3)
with context.Pool(3) as pool:
    told = pool.map(work, range(3), chunksize=1)
    pool.close()
    pool.join()
while cache.get("count") != 150:  # until the messages are there; the test has a time-out
    pass
print(json.dumps({
    "children": told,
    "parent": [os.getpid(), cache.coherent_cache.instance_id],
    "seen": [cache.get(f"from {number}") for number in range(3)],
}))
"""


def test_djangos_caches_in_forked_workers(redis_server, namespace):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, redis_server.url, namespace],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    pids, instances, values = zip(*told["children"], strict=True)
    assert values == (7, 7, 7)
    assert sorted(told["seen"]) == sorted(pids)
    assert len({*pids, told["parent"][0]}) == 4
    assert len({*instances, told["parent"][1]}) == 4
