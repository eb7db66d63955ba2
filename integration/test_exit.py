"""Processes that end while the cache is in use leave nothing behind, say nothing, and lose no answered write."""

from __future__ import annotations

import pytest

from coherent_cache.keys import shard_names

OPTIONS = {"heartbeat": 0.1, "max_staleness": 3.0, "timeout": 5.0}


@pytest.fixture
def start(redis_server, processes, namespace):
    """Give a starter of a worker of this test's namespace."""
    options = OPTIONS | {"namespace": namespace}
    return lambda name, **arguments: processes.spawn(name, url=redis_server.url, options=options, **arguments)


@pytest.fixture
def members(redis_server, namespace):
    """Give what tells which instances may hold local values, as writers who wait for them see it (P12)."""

    def look():
        with redis_server.client() as plain:
            return [field.decode() for field in plain.hkeys(shard_names(namespace, 0, 0).members) if field]

    return look


@pytest.mark.parametrize(
    ("method", "kind"), [("fork", "Pool"), ("fork", "Executor"), ("forkserver", "Executor"), ("spawn", "Pool")]
)
def test_pools_of_processes(start, members, method, kind):
    worker = start("use_processes", method=method, kind=kind)
    told = worker.result()
    assert told.pop("processes") >= (3 if kind == "Pool" else 1)
    assert told == {
        "parent": False, "counted": sorted([*range(1, 21)] * 3), "backwards": [], "errors": [], "resyncs": 1,
    }  # fmt: skip
    assert worker.stderr == ""
    # Each process has left: a writer who waits for all instances does not wait until the time of one is over.
    assert members() == []
