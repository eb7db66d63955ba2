"""The plugin's fixtures with real processes and a real Redis, and every example of the page about them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from coherent_cache import CoherentCache, ConfigError
from coherent_cache.remote.embedded import find_redis_server
from coherent_cache.testing import Fleet, WorkerDied, WorkerFailed, WorkerLate, assert_coherent, fleet_worker
from coherent_cache.testing import fleet as fleet_module
from integration.waiting import wait_until
from integration.workers import ROOT

pytest_plugins = ["pytester"]

PATIENCE = 30.0
PAGE = ROOT / "docs/how-to/testing.md"
EXAMPLE = re.compile(r"^```python\n# (\S+\.py)\n(.*?)^```", re.DOTALL | re.MULTILINE)


class Mine(Exception):
    pass


def read(cache, key):
    return cache.get(key)


def write(cache, key, value):
    return cache.set(key, value)


def fail(cache, text):
    raise Mine(text)


def add(cache, amount):
    return cache.update("sum", lambda total: total + amount, default=0)


def exit_at_once(cache):
    print("last words", flush=True)
    os._exit(3)


def return_lock(cache):
    return threading.Lock()


class Weird(Exception):
    """Pickle makes it of its ``args``, which are too few."""

    def __init__(self, one, two):
        super().__init__(one)


def raise_weird(cache):
    raise Weird(1, 2)


def loop(cache, key):
    while True:
        cache.get(key)


def stdin(cache):
    return sys.stdin.read()


def spoil(cache, key):
    """Let the local entry say that it is of another version."""
    cache.get(key)
    cache._runtime.instance.shards[0].tier.entries[key].seq += 1


def raised(kind, function, *args, **kwargs):
    with pytest.raises(kind) as caught:
        function(*args, **kwargs)
    return caught.value


def is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("number", [1, 3])
def test_functions_run_in_every_process(fleet, number):
    members = fleet(number)
    members[0].run(write, "a", [1])
    assert members.run(read, "a") == [[1]] * number
    assert max(members.map(add, range(number))) == sum(range(number))
    assert members[-1].run(read, "sum") == sum(range(number))
    assert len({member.pid for member in members} | {os.getpid()}) == number + 1
    assert_coherent(members, ["a", "sum"])


def test_what_is_raised_comes_back(fleet):
    members = fleet(2)
    error = raised(Mine, members.run, fail, "it is so")
    assert error.args == ("it is so",)
    assert f"raised by worker {members[0].instance_id}" in error.__notes__[0]
    assert "in fail" in error.__notes__[0]
    assert "returned a lock, which cannot be pickled" in str(raised(WorkerFailed, members[0].run, return_lock))
    text = str(raised(WorkerFailed, members[0].run, raise_weird))
    assert "has an outcome that cannot be unpickled: TypeError" in text
    assert "in raise_weird" in text
    assert members.run(read, "a") == [None, None]


def test_what_cannot_be_sent_is_refused(fleet):
    members = fleet(1)
    for function in (lambda cache: None, 3):
        raised(ConfigError, members.run, function)
    raised(ConfigError, members.run, read, threading.Lock())
    raised(ConfigError, members.map, read, ["a", "b"])
    assert members.run(stdin) == [""]


def test_a_process_that_dies_is_named(fleet):
    members = fleet(2)
    error = raised(WorkerDied, members.run, exit_at_once)
    assert (error.instance_id, error.pid) == (members[0].instance_id, members[0].pid)
    assert "ended by itself, with status 3; its output ends with:\nlast words" in str(error)
    members.close()
    raised(WorkerDied, members[1].run, read, "a")


def test_one_that_dies_while_nobody_looks_is_found(fault_proxy, namespace):
    with Fleet(2, fault_proxy.url, namespace=namespace) as members:
        members.check()
        os.kill(members[1].pid, signal.SIGKILL)
        wait_until(lambda: not members[1].running, PATIENCE, "it is gone")
        assert "ended by itself, by SIGKILL" in str(raised(WorkerDied, members.check))
        members.check()  # told once
        members[0].kill()
        members.check()  # no wonder


def test_killed_and_replaced(fleet):
    members = fleet(2)
    task, before = members[1].start(loop, "a"), members[1].instance_id
    assert not task.done
    members[1].kill()
    assert "was ended by the test, by SIGKILL" in str(raised(WorkerDied, task.result))
    assert members.run(read, "a") == [None]
    raised(WorkerDied, members[1].pause)
    members[1].restart()
    assert members[1].instance_id != before
    raised(WorkerDied, task.result)
    assert members.run(read, "a") == [None, None]


def test_paused(fleet):
    members = fleet(2)
    members[1].pause()
    members[0].run(write, "a", 1)
    task = members[1].start(read, "a")
    assert "is not done with task 1 within 0.1 s; it is paused" in str(raised(WorkerLate, task.result, 0.1))
    assert repr(members[1]) == f"<worker {members[1].instance_id}, process {members[1].pid}: paused>"
    members[1].resume()
    assert task.result(PATIENCE) == 1
    assert task.done
    members[1].kill()
    members[1].resume()
    assert repr(members[1]).endswith(": ended>")


def test_several_tasks_of_one_process_at_once(fleet):
    member = fleet(1)[0]
    member.start(loop, "a")
    member.run(write, "a", 1)
    assert_coherent(member, ["a"])


def test_cut_off_and_back(fleet, fault_proxy, coherent_cache_factory, coherent_cache_url):
    writer = coherent_cache_factory(coherent_cache_url)
    members = fleet(2, max_staleness=60.0)
    writer.set("a", 1)
    assert members.run(read, "a") == [1, 1]
    with fault_proxy.hold(where=members[1].subscriber):
        writer.set("a", 2)
        assert_coherent([writer, members[0]], ["a"])
        text = str(raised(AssertionError, assert_coherent, [writer, *members], ["a"], timeout=0.1))
        assert len(text.splitlines()) == 2
        assert f"key 'a': instance {members[1].instance_id} (coherent) holds" in text
    assert_coherent([writer, *members], ["a"])
    assert fault_proxy.cut(where=members[0].where) >= 2
    assert_coherent(members, ["a"])


def test_a_spoilt_entry_in_another_process_is_found(fleet):
    members = fleet(2)
    members[0].run(write, "a", 1)
    assert_coherent(members)
    members[1].run(spoil, "a")
    assert members[1].instance_id in str(raised(AssertionError, assert_coherent, members, timeout=0))


def test_nothing_is_left_behind(fault_proxy, namespace):
    with Fleet(3, fault_proxy.url, namespace=namespace) as members:
        pids = [member.pid for member in members]
        folder = members._folder
        members[0].start(loop, "a")
        members[1].pause()
    assert all(map(is_gone, pids))
    assert not folder.exists()
    members.close()


def test_those_that_do_not_end_are_killed(fault_proxy, namespace, monkeypatch):
    monkeypatch.setattr(fleet_module, "END_SECONDS", 0.0)
    with Fleet(1, fault_proxy.url, namespace=namespace) as members:
        pid = members[0].pid
    assert is_gone(pid)


@pytest.mark.parametrize("paused", [False, True])
def test_they_end_with_the_process_that_started_them(coherent_cache_url, namespace, paused, tmp_path):
    """Even if that is killed: their standard input ends; a paused one's process group becomes an orphan."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, time\n"
        "from coherent_cache.testing import Fleet\n"
        "fleet = Fleet(1, sys.argv[1], namespace=sys.argv[2])\n"
        "if sys.argv[3] == 'True': fleet[0].pause()\n"
        "print(fleet[0].pid, fleet._folder, flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, script, coherent_cache_url, namespace, str(paused)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as starter:
        pid, folder = starter.stdout.readline().split()
        starter.kill()
    wait_until(lambda: is_gone(int(pid)) or _is_zombie(int(pid)), PATIENCE, "the worker is gone")
    for file in Path(folder).iterdir():
        file.unlink()
    Path(folder).rmdir()


def _is_zombie(pid):
    """Tell whether it has ended and waits for whoever has adopted it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return False


def test_one_that_cannot_start_says_why(fault_proxy, namespace, monkeypatch):
    monkeypatch.setattr(fleet_module, "_PROGRAM", "raise SystemExit('no such luck')")
    error = raised(WorkerDied, Fleet, 2, fault_proxy.url, namespace=namespace)
    assert "ended by itself, with status 1; its output ends with:\nno such luck" in str(error)


def test_one_that_is_not_ready_in_time(fault_proxy, namespace, monkeypatch):
    monkeypatch.setattr(fleet_module, "START_SECONDS", 0.0)
    assert "is not done with its start within 0 s" in str(
        raised(WorkerLate, Fleet, 1, fault_proxy.url, namespace=namespace)
    )


def test_the_process_side_from_end_to_end(redis_server, namespace, tmp_path, monkeypatch):
    """What ``main`` does, in this process: its input is at its end already."""
    plan = fleet_module._pickled("options", (redis_server.url, {"namespace": namespace}))
    (tmp_path / "plan").write_bytes(plan)
    reading, writing = os.pipe()
    os.close(writing)
    kept = os.dup(0)
    os.dup2(reading, 0)
    os.close(reading)
    try:
        fleet_worker.main(str(tmp_path), "w")
    finally:
        os.dup2(kept, 0)
        os.close(kept)
    assert (tmp_path / "w.ready").exists()
    monkeypatch.setattr(fleet_worker, "READY_SECONDS", 0.0)
    monkeypatch.setattr(CoherentCache, "wait_ready", lambda *_: False)
    assert "not coherent within 0 s" in str(raised(Exception, fleet_worker.main, str(tmp_path), "w"))


def test_what_a_test_leaves_in_redis_is_removed(pytester, redis_server):
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.coherent_cache(shards=3)
        def test_it(coherent_cache_factory, coherent_cache_url):
            coherent_cache_factory(coherent_cache_url).set_many({f"k{i}": i for i in range(20)}, ttl=None)
        """
    )
    run_inside(pytester, redis_server.url).assert_outcomes(passed=1)
    with redis_server.client() as plain:
        assert plain.keys("*") == []


def test_a_worker_that_dies_unseen_fails_the_test(pytester, redis_server):
    pytester.makepyfile(
        """
        import os

        def die(cache):
            print("last words", flush=True)
            os._exit(4)

        def test_it(fleet):
            member = fleet(1)[0]
            member.start(die)
            while member.running:
                pass
        """
    )
    result = run_inside(pytester, redis_server.url, "--import-mode=importlib")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*WorkerDied: worker worker-0-* ended by itself, with status 4; *", "*last words*"])


@pytest.mark.skipif(find_redis_server() is None, reason="no redis-server")
def test_the_private_server(pytester):
    pytester.makepyfile(
        """
        def read(cache, key):
            return cache.get(key)

        def test_it(fleet, coherent_cache_factory, coherent_cache_url):
            assert coherent_cache_url.startswith("unix://")
            coherent_cache_factory(coherent_cache_url).set("a", 1)
            assert fleet(2).run(read, "a") == [1, 1]
        """
    )
    run_inside(pytester, None).assert_outcomes(passed=1)


@pytest.mark.slow
def test_the_examples_of_the_page(pytester, redis_server, monkeypatch):
    text = PAGE.read_text("utf-8")
    examples = EXAMPLE.findall(text)
    assert len(examples) == text.count("```python\n") == 6
    for name, code in examples:
        file = pytester.path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(code)
    monkeypatch.setenv("TEST_REDIS_URL", redis_server.url)
    tests = sum(code.count("\ndef test_") for _, code in examples)
    run_inside(pytester, redis_server.url).assert_outcomes(passed=tests)


def run_inside(pytester, url, *args):
    """Run pytest in its folder, with the plugin be it installed or not."""
    given = [] if url is None else ["--coherent-cache-url", url]
    command = ["-p", "coherent_cache.testing.plugin", "-Werror", *given, *args]
    return pytester.runpytest_subprocess(*command, timeout=100)
