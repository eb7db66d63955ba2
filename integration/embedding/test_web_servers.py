"""The cache in the workers of real web servers: every answer is checked from outside."""

from __future__ import annotations

from functools import partial

import pytest

from integration.embedding.configuration import MAX_STALENESS
from integration.embedding.programs import gunicorn, uvicorn
from integration.embedding.traffic import Traffic, clock, request, wait_for_workers
from integration.waiting import wait_until

ANSWERS = 400  # of a test: each worker serves its part from its local tier
PATIENCE = 60.0  # seconds for what takes a moment


SERVERS = [
    pytest.param(["--worker-class", "sync"], id="sync"),
    pytest.param(["--worker-class", "gthread", "--threads", "4"], id="gthread"),
]


@pytest.mark.parametrize("preload", [False, True], ids=["alone", "preload"])
@pytest.mark.parametrize("worker_class", SERVERS)
def test_gunicorn(configure, connected, namespace, worker_class, preload):
    configuration = configure(use_at_import=True)
    with gunicorn(configuration, workers=3, options=[*worker_class, *(["--preload"] if preload else [])]) as server:
        workers = wait_for_workers(partial(request, server.socket), 3)
        pids = {name: answer["pid"] for name, answer in workers.items()}
        assert set(pids.values()) == server.children()
        # A parent that has used the cache goes on with its own instance, its children begin with an empty one.
        assert connected() == pids | {name: pid for name, pid in connected().items() if preload and pid == server.pid}
        assert (server.pid in connected().values()) is preload
        assert all(answer["size"] == 0 for answer in workers.values()) is preload
        before = connected()

        with Traffic(partial(request, server.socket), seed=namespace) as traffic:
            traffic.run_for(ANSWERS, PATIENCE)
        assert traffic.failures == []
        assert traffic.faults(max_staleness=MAX_STALENESS) == []
        assert set(traffic.pids) == set(pids.values())
        assert {read.tier for read in traffic.reads} == {"local", "redis"}
        loaded = {request(server.socket, "GET", "/load", key="loaded")[1]["value"] for _ in range(10)}
        assert len(loaded) == 1
        assert connected() == before
        server.end()
    wait_until(lambda: not connected(), PATIENCE, "nothing is connected any more")


def test_gunicorn_replaces_its_workers(configure, connected, namespace):
    """Workers end after some requests (``max_requests``): new ones join, and old ones leave nothing behind."""
    recycling = ["--max-requests", "25", "--max-requests-jitter", "10", "--preload"]
    with gunicorn(configure(use_at_import=True), workers=3, options=recycling) as server:
        wait_for_workers(partial(request, server.socket), 3)
        with Traffic(partial(request, server.socket), seed=namespace) as traffic:
            traffic.wait(lambda: len(traffic.pids) >= 8, PATIENCE, "eight workers have answered")
        assert traffic.failures == []
        assert traffic.faults(max_staleness=MAX_STALENESS) == []

        def only_the_living() -> bool:
            return set(connected().values()) <= {server.pid, *server.children()}

        wait_until(only_the_living, PATIENCE, "workers that ended have no connections")
        server.end()
    wait_until(lambda: not connected(), PATIENCE, "nothing is connected any more")


@pytest.mark.parametrize("close", [True, False], ids=["closed", "left-open"])
@pytest.mark.parametrize("application", ["application", "async_application"], ids=["threads", "asyncio"])
def test_uvicorn(configure, connected, members, namespace, application, close):
    with uvicorn(configure(use_at_import=True, close=close), workers=2, application=application) as server:
        pids = {name: answer["pid"] for name, answer in wait_for_workers(partial(request, server.socket), 2).items()}
        assert connected() == pids
        with Traffic(partial(request, server.socket), seed=namespace) as traffic:
            traffic.run_for(ANSWERS, PATIENCE)
        assert traffic.failures == []
        assert traffic.faults(max_staleness=MAX_STALENESS) == []
        assert set(traffic.pids) == set(pids.values())
        assert connected() == pids
        server.end()
    # Uvicorn ends its processes by the signal that it was sent: nothing else closes the cache.
    assert bool(members()) is not close
    wait_until(lambda: not connected(), PATIENCE, "nothing is connected any more")


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(partial(gunicorn, workers=3, options=["--graceful-timeout", "300"]), id="gunicorn-sync"),
        pytest.param(
            partial(gunicorn, workers=3, options=["--preload", "--threads", "4", "--graceful-timeout", "300"]),
            id="gunicorn-gthread-preload",
        ),
        pytest.param(partial(uvicorn, workers=2), id="uvicorn-threads"),
        pytest.param(partial(uvicorn, workers=2, application="async_application"), id="uvicorn-asyncio"),
    ],
)
def test_told_to_end_under_load(configure, connected, members, stored, namespace, start):
    """No answered write is lost, nobody is told of an error before, and nothing keeps a process from ending."""
    with start(configure(use_at_import=True)) as server:
        wait_for_workers(partial(request, server.socket), 2)
        assert members()
        with Traffic(partial(request, server.socket), seed=namespace, threads=6, writes=0.6) as traffic:
            traffic.run_for(ANSWERS // 2, PATIENCE)
            told_at = clock()
            server.end()
        assert not [failure for failure in traffic.failures if failure.at < told_at]
        assert traffic.faults(max_staleness=MAX_STALENESS) == []
        assert members() == []  # a writer that waits for all instances does not wait for those that were ended
        assert connected() == {}
    assert traffic.lost(stored) == []
