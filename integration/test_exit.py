"""Processes that end while the cache is in use leave nothing behind, say nothing, and lose no answered write."""

from __future__ import annotations

import pytest

from coherent_cache import CoherentCache
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


@pytest.fixture
def stored(redis_server, namespace):
    """Give what tells the version that Redis has of a key, 0 if there is none."""
    with CoherentCache(redis_server.url, namespace=namespace, local_enabled=False) as remote:

        def look(key):
            entry = remote.get_entry(key)
            return 0 if entry is None else entry.version.seq

        yield look


def acknowledged(worker):
    """Return the newest version of each key that a worker told of."""
    return {message["key"]: message["seq"] for message in worker.messages}  # the last one counts


@pytest.mark.parametrize("how", ["exit", "close", "loop"])
def test_a_process_told_to_end_under_load(start, members, stored, how):
    worker = start("write_until_told", how=how)
    worker.wait_message(lambda message: message["seq"] > 300)
    assert members()
    worker.terminate()
    assert worker.wait() == 0, worker.stderr
    assert worker.stderr == ""
    told = acknowledged(worker)
    assert told["last words"]
    assert len(told) >= 4
    lost = {key: seq for key, seq in told.items() if stored(key) < seq}
    assert not lost
    assert members() == []


def test_a_process_ends_while_redis_hangs(processes, fresh_server, namespace):
    options = OPTIONS | {"namespace": namespace, "timeout": 0.5}
    worker = processes.spawn("wait_for_the_end", url=fresh_server.url, options=options)
    worker.wait_message(lambda message: message["key"] == "key")
    fresh_server.pause()
    worker.terminate()
    assert worker.wait() == 0, worker.stderr
    assert worker.stderr == ""


def test_the_first_use_is_when_the_interpreter_ends(start, members, stored):
    worker = start("write_last")
    assert worker.result() is None
    assert worker.stderr == ""
    assert stored("last words") == acknowledged(worker)["last words"] > 0
    assert members() == []
