"""P13: a forked child has an instance of its own, and the parent does not notice."""

from __future__ import annotations

import pytest

from integration.waiting import wait_until

READY = 20.0
OPTIONS = {"heartbeat": 0.1, "max_staleness": 3.0, "timeout": 5.0}

both_transports = pytest.mark.parametrize("query", ["", "?protocol=2"], ids=["resp3", "marks"])


@pytest.fixture
def run(redis_server, processes, namespace):
    """Give a starter of one worker of this test's namespace; what it returns is returned."""

    def run_worker(name, query="", **arguments):
        options = OPTIONS | {"namespace": namespace}
        return processes.spawn(name, url=redis_server.url + query, options=options, **arguments).result()

    return run_worker


@both_transports
def test_fork_while_threads_read_and_write(run, query):
    told = run("fork_by_hand", query)
    child = told.pop("child")
    assert child["id"] != told.pop("parent")
    assert (child["size"], child["hits"], child["state"]) == (0, 0, "connecting")
    assert child["inherited"] == []
    assert f"coherent-cache:{child['id']}:subscriber" in child["clients"]
    assert told == {"errors": [], "child's write": True, "same subscriber": True, "resyncs": 1, "flushes": 0}


def test_fork_out_of_many_threads_fifty_times(run):
    assert run("fork_many", forks=50, threads=6) == {"children": 50, "errors": [], "resyncs": 1}


def test_fork_while_another_thread_holds_a_lock(run):
    """Each lock in turn, as found by following what a cache refers to: one that is added is found too."""
    told = run("fork_while_locks_are_held")
    for part in ("Shard", "Flights", "EventHub", "Subscriber", "Renewals", "Background", "Dependencies", "Runtime"):
        assert any(f"/{part}" in name for name in told["locks"]), told["locks"]
    assert told["children"] == len(told["locks"])


def test_fork_under_an_event_loop(run):
    told = run("fork_under_a_loop")
    children = told.pop("facts")
    assert told == {"errors": [], "same connections": True, "resyncs": 1}
    assert len({child["id"] for child in children}) == len(children)
    for child in children:
        assert (child["size"], child["state"], child["inherited"]) == (0, "connecting", [])


def test_fork_twice(run):
    assert len(set(run("fork_twice"))) == 3


def test_fork_before_the_first_use(run):
    told = run("fork_before_use")
    assert told["before"] == {}
    assert len(set(told["names"])) == 4


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(run, method):
    told = run("use_multiprocessing", method=method)
    assert told["exit codes"] == [0, 0]
    assert told["errors"] == []
    assert told["seen"] == [True, True]
    assert told["resyncs"] == 1
    assert [(child["size"], child["state"]) for child in told["children"]] == [(0, "connecting")] * 2
    assert len({told["parent"], *(child["id"] for child in told["children"])}) == 3


def test_fork_in_the_middle_of_an_operation(run):
    """The child comes back into an operation of the parent: it must not finish it on the parent's connection."""
    told = run("fork_inside_an_operation")
    assert told["child"] == {"error": "CacheUnavailable", "maybe_applied": False, "afterwards": "1"}
    assert told["resyncs"] == 1


def test_a_killed_parent_leaves_no_connection_in_its_children(redis_server, processes, namespace, tmp_path):
    """A child that kept copies of the parent's sockets would keep the connections open, and nobody would read them."""
    worker = processes.spawn(
        "fork_and_wait", url=redis_server.url, options=OPTIONS | {"namespace": namespace}, folder=str(tmp_path)
    )
    parent = worker.wait_message(lambda message: "parent" in message)["parent"]
    wait_until((tmp_path / "ready").exists, READY, "the child is there")
    with redis_server.client() as plain:

        def connections_of_parent():
            return [client["name"] for client in plain.client_list() if parent in client["name"]]

        assert connections_of_parent()
        worker.kill()
        try:
            wait_until(lambda: not connections_of_parent(), READY, "the parent's connections end with it")
        finally:
            (tmp_path / "killed").touch()
        wait_until((tmp_path / "done").exists, READY, "the child goes on")


def test_nothing_is_open_after_close(redis_server, processes, namespace):
    """The check itself is done after every test; here it is made sure that there was something to close."""
    worker = processes.spawn("fork_before_use", url=redis_server.url, options=OPTIONS | {"namespace": namespace})
    names = worker.result()["names"]
    with redis_server.client() as plain:
        assert not [client for client in plain.client_list() if any(name in client["name"] for name in names)]
