"""The cache in the workers of Celery, whose pools are processes or threads: every result is checked from outside."""

from __future__ import annotations

import pytest

from integration.embedding.configuration import MAX_STALENESS
from integration.embedding.programs import celery
from integration.embedding.queue import Queue
from integration.embedding.traffic import Traffic, clock, wait_for_workers
from integration.waiting import wait_until

RESULTS = 300  # of a test
PATIENCE = 60.0  # seconds for what takes a moment
WORKERS = 2


@pytest.fixture
def queue(redis_server):
    """Give what opens the queue of a worker."""
    return lambda worker: Queue(redis_server.url, worker.folder)


@pytest.mark.parametrize("close", [True, False], ids=["closed", "left-open"])
def test_prefork(configure, connected, members, stored, namespace, queue, close):
    """The main process has used the cache before it forks; it and its children are told to end under load."""
    configuration = configure(use_at_import=True, close=close)
    with celery(configuration, pool="prefork", concurrency=WORKERS) as worker, queue(worker) as tasks:
        children = wait_for_workers(tasks.ask, WORKERS)
        pids = {name: answer["pid"] for name, answer in children.items()}
        assert set(pids.values()) == worker.children()
        assert all(answer["size"] == 0 for answer in children.values())
        before = connected()
        assert {pid for name, pid in before.items() if name not in pids} == {worker.pid}
        assert pids.items() <= before.items()

        with Traffic(tasks.ask, seed=namespace, threads=6) as traffic:
            traffic.run_for(RESULTS, PATIENCE)
            assert connected() == before
            told_at = clock()
            worker.end()
            tasks.give_up()
        check(traffic, told_at, stored)
        assert set(traffic.pids) == set(pids.values())
        # Who waits for all instances need not wait for those that were closed; the others' time has to be over.
        assert bool(members()) is not close
    wait_until(lambda: not connected(), PATIENCE, "nothing is connected any more")


def test_threads(configure, connected, members, stored, namespace, queue):
    with celery(configure(use_at_import=True), pool="threads", concurrency=4) as worker, queue(worker) as tasks:
        wait_for_workers(tasks.ask, 1)
        assert list(connected().values()) == [worker.pid]
        with Traffic(tasks.ask, seed=namespace, threads=6) as traffic:
            traffic.run_for(RESULTS, PATIENCE)
            assert list(connected().values()) == [worker.pid]
            told_at = clock()
            worker.end()
            tasks.give_up()
        check(traffic, told_at, stored)
        assert set(traffic.pids) == {worker.pid}
        assert members() == []
    wait_until(lambda: not connected(), PATIENCE, "nothing is connected any more")


def test_children_are_replaced(configure, connected, namespace, queue):
    """A child ends after some tasks (``max_tasks_per_child``), another one is forked from the process that goes on."""
    options = ["--max-tasks-per-child", "25"]
    with (
        celery(configure(use_at_import=True), pool="prefork", concurrency=WORKERS, options=options) as worker,
        queue(worker) as tasks,
    ):
        wait_for_workers(tasks.ask, WORKERS)
        with Traffic(tasks.ask, seed=namespace, threads=4) as traffic:
            traffic.wait(lambda: len(traffic.pids) >= 2 * WORKERS + 2, PATIENCE, "other children answer")
        assert traffic.failures == []
        assert traffic.faults(max_staleness=MAX_STALENESS) == []

        def only_the_living() -> bool:
            return set(connected().values()) <= {worker.pid, *worker.children()}

        wait_until(only_the_living, PATIENCE, "children that ended have no connections")
        worker.end()
    wait_until(lambda: not connected(), PATIENCE, "nothing is connected any more")


def check(traffic, told_at, stored):
    """Check results that were collected until a worker that was told to end was gone."""
    assert not [failure for failure in traffic.failures if failure.at < told_at]
    assert traffic.faults(max_staleness=MAX_STALENESS) == []
    assert {read.tier for read in traffic.reads} == {"local", "redis"}
    assert traffic.lost(stored) == []
