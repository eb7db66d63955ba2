"""``coherent-cache demo`` as a user runs it: real processes, a real Redis, faults, a terminal, Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from coherent_cache import CacheUnavailable, CoherentCache, ConfigError
from coherent_cache.remote.embedded import embedded_server, embedded_url, find_redis_server
from coherent_cache.remote.faults import (
    cut_subscriber,
    embedded_outage,
    is_alive,
    remove_namespace,
    restart_embedded,
)
from integration.waiting import wait_until

COMMAND = [sys.executable, "-m", "coherent_cache"]
DEADLINE = 60.0

pytestmark = pytest.mark.skipif(find_redis_server() is None, reason="needs a redis-server to start")


@pytest.fixture
def folder():
    """Give a folder for all temporary files of a demo, short enough for sockets; nothing may be left in it."""
    path = Path(tempfile.mkdtemp(prefix="d-", dir="/tmp"))
    yield path
    try:
        wait_until(lambda: not list(path.iterdir()), 10.0, "the demo's files are gone")
        wait_until(lambda: not processes_that_name(path), 10.0, "the demo's processes are gone")
    finally:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def environment(folder):
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COHERENT_CACHE_")}
    return plain | {"TMPDIR": str(folder)}


@pytest.fixture
def start(environment):
    """Start a demo; it is killed after the test if it still runs."""
    started = []

    def start(*options, **popen):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | popen
        started.append(subprocess.Popen([*COMMAND, "demo", *options], env=environment, **pipes))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def demo(start):
    """Run a demo to its end; give exit code, standard output and standard error."""

    def demo(*options):
        process = start(*options)
        out, err = process.communicate(timeout=DEADLINE)
        return process.returncode, out, err

    return demo


def processes_that_name(path):
    lines = subprocess.run(["ps", "-A", "-o", "args="], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if str(path) in line]


def children(pid):
    rows = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    return [int(child) for child, parent in (row.split() for row in rows.splitlines()) if int(parent) == pid]


def wait_for(process, words):
    """Read a demo's lines up to one with these words."""
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(f"it ended without {words!r}: {process.stderr.read()}")


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_fleet_is_coherent_through_faults(demo):
    code, out, err = demo("--seconds", "6", "--json")
    assert (code, err) == (0, "")
    assert out.count("\n") == 1, "one document and nothing else"
    report = json.loads(out)
    assert (report["verdict"], report["problems"]) == ("coherent", [])
    assert (report["stale"], report["backward"]) == (0, 0)
    assert report["reads"] > 10_000
    assert report["checked"] > 500
    assert report["checked"] <= report["reads"] / 20
    assert report["writes"] > 20
    assert report["published"] > 0
    assert report["hit_rate"] > 0.5
    assert report["worst_staleness"] <= report["max_staleness"]
    assert report["propagation"]["samples"] > 20
    assert 0 <= report["propagation"]["p50"] <= report["propagation"]["p99"] <= report["propagation"]["max"]
    workers = report["workers"]
    assert len({worker["pid"] for worker in workers}) == 4
    assert sum(worker["reads"] for worker in workers) == report["reads"]
    assert all(worker["stats"]["hits"] > 0 for worker in workers)

    cut, restart = report["faults"]
    assert (cut["kind"], cut["done"]) == ("cut", True)
    assert list(cut["outcomes"].values()) in (["replayed"], ["unbroken"]), "a short cut costs no local entries"
    assert (restart["kind"], restart["done"], restart["workers"]) == ("restart", True, [1, 2, 3, 4])
    assert restart["recovered_in"], "somebody came back"
    lost = [event for worker in workers for event in worker["events"] if event["name"] == "history_lost"]
    assert lost, "an empty Redis is another history"


def test_a_cache_that_is_not_coherent_is_found_out(demo):
    code, out, err = demo("--seconds", "4", "--json", "--sabotage")
    assert (code, err) == (1, "")
    report = json.loads(out)
    assert report["verdict"] == "not coherent"
    assert report["stale"] > 0
    assert report["backward"] > 0
    assert report["worst_staleness"] > report["max_staleness"]
    honest = report["workers"][1:]
    assert all(worker["stale"] == worker["backward"] == 0 for worker in honest), "only the saboteur is to blame"


def test_in_a_pipe_it_prints_plain_lines(demo):
    code, out, err = demo("--seconds", "3", "--workers", "2", "--keys", "20", "--seed", "7")
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert "2 workers" in out
    assert "20 rows" in out
    assert re.search(r"cut the invalidation connection of worker 2", out)
    assert re.search(r"worker 2 coherent again after", out)
    assert re.search(r"shut Redis down for .*came back empty", out)
    assert out.endswith("VERDICT: coherent\n")


def test_the_verdict_of_a_sabotaged_fleet_names_the_problem(demo):
    code, out, _ = demo("--seconds", "3", "--workers", "2", "--sabotage", "--no-faults")
    assert code == 1
    assert re.search(r"VERDICT: NOT COHERENT: .*reads were older than 1 s; .*reads went backward\n$", out)


@pytest.mark.parametrize("no_color", [False, True])
def test_on_a_terminal_it_draws_a_table(start, environment, no_color):
    environment |= {"TERM": "xterm-256color", "COLUMNS": "150", "LINES": "40"}
    environment.pop("NO_COLOR", None)
    if no_color:
        environment["NO_COLOR"] = "1"
    terminal, program = pty.openpty()
    process = start("--seconds", "2", "--workers", "2", "--no-faults", stdout=program, text=False)
    os.close(program)
    shown = b""
    while True:
        try:
            piece = os.read(terminal, 65_536)
        except OSError:
            break  # Linux: the other end was closed
        if not piece:
            break
        shown += piece
    os.close(terminal)
    assert process.wait(DEADLINE) == 0
    text = shown.decode()
    for words in ("reads/s", "p50/p99ms", "last event", "coherent", "VERDICT: coherent"):
        assert words in text
    colours = re.search(r"\x1b\[(?:\d+;)*3[0-7]m", text)
    assert (colours is None) == no_color


def test_a_signal_while_redis_is_away_leaves_nothing_behind(start, folder):
    process = start("--seconds", "15", "--workers", "1")
    wait_for(process, "shut Redis down")
    workers = children(process.pid)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, err) == (130, "")
    wait_until(lambda: not any(is_running(pid) for pid in workers), 10.0, "the workers are gone, and buried")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(start, folder, number):
    process = start("--seconds", "30", "--workers", "2")
    if number == signal.SIGINT:
        wait_for(process, "reads/s")  # in the middle; the others while it starts
    wait_until(lambda: len(children(process.pid)) >= 2, DEADLINE, "the workers run")
    workers = children(process.pid)
    assert processes_that_name(folder), "the server runs"
    process.send_signal(number)
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 128 + number
    assert err == ""
    assert "VERDICT" not in out
    wait_until(lambda: not any(is_running(pid) for pid in workers), 10.0, "the workers are gone, and buried")


def test_a_killed_demo_takes_its_processes_along(start, folder):
    process = start("--seconds", "30", "--workers", "2")
    wait_for(process, "reads/s")
    workers = children(process.pid)
    assert len(workers) == 2
    process.kill()
    process.wait()
    wait_until(lambda: not any(is_running(pid) for pid in workers), DEADLINE, "the workers are gone")
    wait_until(lambda: not processes_that_name(folder), DEADLINE, "the server is gone")
    for left in folder.glob("coherent-cache-demo-*"):  # the database: nobody was left to remove it
        shutil.rmtree(left)


def test_a_reader_that_has_seen_enough_ends_it(start):
    process = start("--seconds", "30", "--workers", "2")
    assert "2 workers" in process.stdout.readline()
    process.stdout.close()
    assert process.wait(DEADLINE) == 128 + signal.SIGPIPE
    assert process.stderr.read() == ""


def test_somebody_elses_redis_is_never_restarted_and_left_clean(demo, redis_server):
    with redis_server.client() as client:
        before = client.info("server")["run_id"]
        client.set("theirs", "untouched")
        code, out, err = demo("--seconds", "4", "--workers", "2", "--url", redis_server.url, "--json")
        assert (code, err) == (0, "")
        assert client.info("server")["run_id"] == before
        assert client.keys("*") == [b"theirs"] or client.keys("*") == ["theirs"]
    report = json.loads(out)
    (cut,) = report["faults"]
    assert (cut["kind"], cut["done"]) == ("cut", True)
    assert list(cut["recovered_in"]) == ["2"]


def test_no_redis_there(demo, folder):
    code, out, err = demo("--url", f"unix://{folder}/nobody-is-here")
    assert (code, out) == (3, "")
    assert err.startswith("coherent-cache: cannot connect to Redis")
    assert err.count("\n") == 1


def test_the_other_commands_on_a_real_server(redis_server, environment, namespace):
    environment |= {"COHERENT_CACHE_URL": redis_server.url, "COHERENT_CACHE_NAMESPACE": namespace}

    def run(*argv):
        done = subprocess.run(
            [*COMMAND, *argv], env=environment, capture_output=True, text=True, check=False, timeout=DEADLINE
        )
        return done.returncode, done.stdout

    assert run("set", "a", '{"b": 1}')[0] == 0
    assert run("get", "a") == (0, '{"b": 1}\n')
    assert run("delete", "a") == (0, "deleted 1 of 1\n")
    assert run("get", "a") == (1, "")
    assert run("clear")[0] == 0


def test_serve_embedded_runs_until_it_is_told_to_end(environment, folder):
    process = subprocess.Popen(
        [*COMMAND, "serve-embedded", "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        server = json.loads(process.stdout.readline())
        got = subprocess.run(
            [*COMMAND, "set", "a", "1", "--namespace", "n", "--url", server["url"]],
            env=environment, check=False, capture_output=True, timeout=DEADLINE,
        )  # fmt: skip
        assert got.returncode == 0
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=DEADLINE)
        assert (process.returncode, err) == (0, "")
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


# -- the faults by themselves ------------------------------------------------------------------------------------------


@pytest.fixture
def server(folder, monkeypatch):
    """Give an embedded server of this process."""
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with embedded_server("faults") as server:
        yield server


def test_a_restarted_server_is_another_one_on_the_same_socket(server, folder):
    with CoherentCache(server.url, namespace="n", local_enabled=False) as cache:
        cache.set("a", 1)
        again = restart_embedded("faults")
        assert (again.url, again.kind, again.version) == (server.url, server.kind, server.version)
        assert again.pid != server.pid
        assert embedded_url("faults") == again
        assert cache.get("a") is None, "it is empty"
        twice = restart_embedded("faults")
        assert twice.pid not in (server.pid, again.pid)
        assert cache.get("a") is None
    assert (folder / Path(server.url.removeprefix("unix://")).parent.name).stat().st_mode & 0o777 == 0o700


def test_a_server_that_should_be_away_is(server):
    with embedded_outage("faults"):
        assert not is_alive(server.url)
    assert is_alive(server.url)


def test_after_an_error_the_server_stays_away(server):
    with pytest.raises(ZeroDivisionError), embedded_outage("faults"):
        raise ZeroDivisionError
    assert not is_alive(server.url)


def test_somebody_elses_server_is_not_restarted(server, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with pytest.raises(ConfigError, match="not started by this process"):
        restart_embedded("faults")
    assert is_alive(server.url)


def test_cutting_a_subscriber(server):
    with CoherentCache(server.url, namespace="n", instance_id="me") as cache:
        assert cache.wait_ready()
        resyncs = cache.stats().resyncs
        assert cut_subscriber(server.url, "me")
        wait_until(lambda: cache.stats().resyncs > resyncs, 10.0, "it proves its stream again")
        assert not cut_subscriber(server.url, "you")


def test_cutting_where_nobody_is(folder):
    with pytest.raises(CacheUnavailable, match="cannot be cut"):
        cut_subscriber(f"unix://{folder}/nobody", "me")
    with pytest.raises(ConfigError):
        cut_subscriber("memory://x", "me")


def test_removing_a_namespace_leaves_others_alone(server):
    with (
        CoherentCache(server.url, namespace="n", local_enabled=False) as gone,
        CoherentCache(server.url, namespace="n2", local_enabled=False) as other,
    ):
        gone.set("a", 1)
        other.set("a", 2)
        assert remove_namespace(server.url, "n") > 1
        assert remove_namespace(server.url, "n") == 0
        assert gone.get("a") is None
        assert other.get("a") == 2
