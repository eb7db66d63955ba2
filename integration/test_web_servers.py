"""The cache in the workers of real web servers: every answer is checked from outside."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from integration.embedding.configuration import Configuration
from integration.embedding.programs import gunicorn, uvicorn
from integration.embedding.traffic import Traffic, request, wait_for_workers
from integration.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_STALENESS = 3.0
OPTIONS = {"heartbeat": 0.1, "max_staleness": MAX_STALENESS, "timeout": 5.0}
ANSWERS = 400  # of a test: each worker serves its part from its local tier
PATIENCE = 60.0  # seconds for what takes a moment
PROCESS = re.compile(r"^coherent-cache:(?P<instance>.+-(?P<pid>\d+)-[0-9a-f]{8})(:.*)?$")


@pytest.fixture
def configure(redis_server, namespace):
    """Give what makes the application's configuration."""

    def make(**more):
        return Configuration(redis_server.url, OPTIONS | {"namespace": namespace}, **more)

    return make


@pytest.fixture
def connected(redis_server) -> Callable[[], dict[str, int]]:
    """Give what tells which instances have connections: process ids by instance."""

    def look() -> dict[str, int]:
        with redis_server.client() as plain:
            names = [match for client in plain.client_list() if (match := PROCESS.match(client["name"]))]
        return {match["instance"]: int(match["pid"]) for match in names}

    return look


def check_end(program) -> None:
    """End a server, which must end well and say nothing of it."""
    program.terminate()
    assert program.wait() == 0, program.tail()
    assert "Traceback" not in program.log, program.log


SERVERS = [
    pytest.param(["--worker-class", "sync"], id="sync"),
    pytest.param(["--worker-class", "gthread", "--threads", "4"], id="gthread"),
]


@pytest.mark.parametrize("preload", [False, True], ids=["alone", "preload"])
@pytest.mark.parametrize("worker_class", SERVERS)
def test_gunicorn(configure, connected, namespace, worker_class, preload):
    configuration = configure(use_at_import=True)
    with gunicorn(configuration, workers=3, options=[*worker_class, *(["--preload"] if preload else [])]) as server:
        workers = wait_for_workers(server.socket, 3)
        pids = {name: answer["pid"] for name, answer in workers.items()}
        assert set(pids.values()) == server.children()
        # A parent that has used the cache goes on with its own instance, its children begin with an empty one.
        assert connected() == pids | {name: pid for name, pid in connected().items() if preload and pid == server.pid}
        assert (server.pid in connected().values()) is preload
        assert all(answer["size"] == 0 for answer in workers.values()) is preload
        before = connected()

        with Traffic(server.socket, seed=namespace) as traffic:
            traffic.run_for(ANSWERS, PATIENCE)
        assert traffic.failures == []
        assert traffic.faults(max_staleness=MAX_STALENESS) == []
        assert set(traffic.pids) == set(pids.values())
        assert {read.tier for read in traffic.reads} == {"local", "redis"}
        loaded = {request(server.socket, "GET", "/load", key="loaded")[1]["value"] for _ in range(10)}
        assert len(loaded) == 1
        assert connected() == before
        check_end(server)
    wait_until(lambda: not connected(), PATIENCE, "nothing is connected any more")


def test_gunicorn_replaces_its_workers(configure, connected, namespace):
    """Workers end after some requests (``max_requests``): new ones join, and old ones leave nothing behind."""
    recycling = ["--max-requests", "25", "--max-requests-jitter", "10", "--preload"]
    with gunicorn(configure(use_at_import=True), workers=3, options=recycling) as server:
        wait_for_workers(server.socket, 3)
        with Traffic(server.socket, seed=namespace) as traffic:
            traffic.wait(lambda: len(traffic.pids) >= 8, PATIENCE, "eight workers have answered")
        assert traffic.failures == []
        assert traffic.faults(max_staleness=MAX_STALENESS) == []

        def only_the_living() -> bool:
            return set(connected().values()) <= {server.pid, *server.children()}

        wait_until(only_the_living, PATIENCE, "workers that ended have no connections")
        check_end(server)
    wait_until(lambda: not connected(), PATIENCE, "nothing is connected any more")


@pytest.mark.parametrize("close", [True, False], ids=["closed", "left-open"])
def test_uvicorn(configure, connected, namespace, close):
    with uvicorn(configure(use_at_import=True, close=close), workers=2) as server:
        pids = {name: answer["pid"] for name, answer in wait_for_workers(server.socket, 2).items()}
        assert connected() == pids
        with Traffic(server.socket, seed=namespace) as traffic:
            traffic.run_for(ANSWERS, PATIENCE)
        assert traffic.failures == []
        assert traffic.faults(max_staleness=MAX_STALENESS) == []
        assert set(traffic.pids) == set(pids.values())
        assert connected() == pids
        check_end(server)
    wait_until(lambda: not connected(), PATIENCE, "nothing is connected any more")
