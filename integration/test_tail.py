"""``coherent-cache tail`` as a user runs it: Redis goes away, the log overflows, the reader stops, a flood comes."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from coherent_cache import CoherentCache
from coherent_cache.core.tailing import GapCause
from coherent_cache.keys import shard_names
from coherent_cache.wire import Kind, Message, encode_message
from integration.waiting import wait_until

PATIENCE = 30.0
COMMAND = [sys.executable, "-m", "coherent_cache", "tail"]
MEBIBYTE = 2**20

FLOOD = """
for i = 1, #ARGV - 3 do
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', '10000', (ARGV[2] + i) .. '-0', 'm', ARGV[3 + i])
  redis.call('PUBLISH', ARGV[1], ARGV[3 + i])
end
redis.call('HSET', KEYS[1], 'seq', string.format('%d', ARGV[2] + #ARGV - 3), 'nonce', ARGV[3])
"""
"""Logs and publishes messages as many writes would, the first of them after version ARGV[2], and moves the clock."""


class Tailing:
    """A running ``tail``: its lines are read by a thread, until told to stop reading."""

    def __init__(self, process):
        self.process = process
        self.records = []
        self.errors = []
        self._reading = threading.Event()
        self._reading.set()
        for stream, take in ((process.stdout, self._take), (process.stderr, self.errors.append)):
            threading.Thread(target=self._read, args=(stream, take), daemon=True).start()

    def _take(self, line):
        self._reading.wait()
        self.records.append(json.loads(line))

    @staticmethod
    def _read(stream, take):
        with contextlib.suppress(ValueError):  # closed by the test
            for line in stream:
                take(line)

    def pause_reading(self):
        self._reading.clear()

    def go_on_reading(self):
        self._reading.set()

    def messages(self):
        return [record for record in list(self.records) if record["event"] == "invalidation"]

    def gaps(self):
        return [record for record in list(self.records) if record["event"] == "gap"]

    def names(self):
        return [name for record in self.messages() for name in record["names"]]

    def until(self, predicate, description):
        wait_until(
            predicate, PATIENCE,
            f"{description}; last records {self.records[-3:]}, errors {self.errors}, exit {self.process.poll()}",
        )  # fmt: skip

    def until_shown(self, name):
        self.until(lambda: name in self.names(), f"{name} is shown")

    def until_said(self, text):
        self.until(lambda: any(text in line for line in self.errors), f"it says {text!r}")

    def end(self, number=signal.SIGINT):
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@pytest.fixture
def start(namespace):
    """Start ``tail`` on the test's namespace; it is killed after the test if it still runs."""
    started = []
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COHERENT_CACHE_")}

    def start(server, *options):
        command = [*COMMAND, "--url", getattr(server, "url", server), "--namespace", namespace, *options]
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
        )
        started.append(process)
        return Tailing(process)

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            with contextlib.suppress(BrokenPipeError, ValueError):
                stream.close()


@pytest.fixture
def make(namespace):
    made = []

    def make(server, **options):
        made.append(CoherentCache(server.url, **{"namespace": namespace, "local_enabled": False} | options))
        return made[-1]

    yield make
    for cache in made:
        cache.close()


@pytest.fixture
def begun(start, make):
    """Give a maker of a writer and a ``tail`` that has shown the writer's first message: it misses nothing after it."""

    def begin(server, *options, **settings):
        writer = make(server, **settings)
        writer.set("first", 0)
        tailing = start(server, "--last", "1", *options)
        tailing.until_shown("first")
        with server.client() as plain:
            tailing.until(lambda: any(own["sub"] != "0" for own in connections(plain)), "it has subscribed")
        return writer, tailing

    return begin


def run(server, namespace, *options):
    return subprocess.run(
        [*COMMAND, "--url", getattr(server, "url", server), "--namespace", namespace, *options],
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip


def records_of(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


def connections(plain):
    return [client for client in plain.client_list() if client["name"] == "coherent-cache:tail"]


def disconnect(server):
    """Close the connections of every ``tail``; tell how many there were."""
    with server.client() as plain:
        return sum(plain.client_kill_filter(_id=own["id"]) for own in connections(plain))


# -- live --------------------------------------------------------------------------------------------------------------


def test_it_follows_every_kind_of_write_until_ctrl_c(redis_server, begun):
    writer, tailing = begun(redis_server)
    writer.set_many({"a": 1, "b": 2}, tags=["red"])
    writer.delete("a")
    writer.touch("b", 60)
    writer.invalidate_tags("red")
    writer.get_or_set("c", lambda: 3)
    writer.clear()
    writer.set("last", 1)
    tailing.until_shown("last")
    assert tailing.end() == 0
    assert tailing.errors == []
    shown = [(each["kind"], each["version"], each["names"]) for each in tailing.messages()]
    assert shown == [
        ("set", 1, ["first"]), ("set", 2, ["a", "b"]), ("delete", 3, ["a"]), ("touch", 4, ["b"]), ("tag", 5, ["red"]),
        ("set", 6, ["c"]), ("clear", 7, []), ("set", 8, ["last"]),
    ]  # fmt: skip
    assert {each["origin"] for each in tailing.messages()} == {writer.instance_id}
    assert tailing.gaps() == []


def test_it_is_no_member_and_delays_no_acknowledgement(redis_server, begun, namespace):
    writer, tailing = begun(redis_server, local_enabled=True)
    assert writer.wait_ready(PATIENCE)
    with redis_server.client() as plain:
        members = plain.hkeys(shard_names(namespace, 0, 0).members)
        assert [name for name in members if name and not name.startswith(writer.instance_id.encode())] == []
    writer.set("acknowledged", 1, wait=PATIENCE)
    tailing.until_shown("acknowledged")
    assert tailing.end() == 0


def test_all_shards_and_the_number_is_found_out(redis_server, begun):
    writer, tailing = begun(redis_server, shards=4)
    names = [f"key-{number}" for number in range(40)]
    for name in names:
        writer.set(name, 1)
    tailing.until(lambda: len(tailing.messages()) == 41, "all are shown")
    assert sorted(tailing.names()) == sorted(["first", *names])
    assert {each["shard"] for each in tailing.messages()} == {0, 1, 2, 3}
    assert tailing.end() == 0


def test_resp2_will_do(redis_server, make, start):
    writer = make(redis_server)
    writer.set("first", 0)
    tailing = start(f"{redis_server.url}?protocol=2", "--last", "1")
    tailing.until_shown("first")
    writer.set("second", 0)
    tailing.until_shown("second")
    assert tailing.end() == 0


def test_it_ends_by_count_and_by_time(redis_server, begun, namespace):
    writer, tailing = begun(redis_server, "--count", "3")
    for number in range(5):
        writer.set(f"k{number}", 1)
    assert tailing.process.wait(PATIENCE) == 0
    tailing.until(lambda: len(tailing.messages()) == 3, "three are shown")
    done = run(redis_server, namespace, "--seconds", "0.3")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_sigterm_is_told_from_ctrl_c(redis_server, begun):
    _, tailing = begun(redis_server)
    assert tailing.end(signal.SIGTERM) == 128 + signal.SIGTERM
    assert tailing.errors == []


def test_a_reader_that_goes_ends_it_though_nothing_comes(redis_server, make, namespace):
    make(redis_server).set("first", 0)
    process = subprocess.Popen(
        [*COMMAND, "--url", redis_server.url, "--namespace", namespace, "--last", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert "first" in process.stdout.readline()
    process.stdout.close()
    assert process.wait(PATIENCE) == 128 + signal.SIGPIPE
    assert process.stderr.read() == ""
    process.stderr.close()


def test_explain_tells_who_has_applied_what(redis_server, make, begun):
    reader, idle = (make(redis_server, local_enabled=True, instance_id=name) for name in ("reader", "idle"))
    writer, tailing = begun(redis_server, "--explain")
    for cache in (reader, idle):
        assert cache.wait_ready(PATIENCE)
    assert reader.get("first") == 0
    writer.set("first", 1)
    tailing.until(lambda: len(tailing.messages()) == 2, "the second message is shown")
    told = tailing.messages()[-1]
    assert (told["instances"], told["silent"]) == ({"reader": "applied", "idle": "ignored"}, 0)
    assert tailing.end() == 0


# -- from the log ------------------------------------------------------------------------------------------------------


def test_the_past_by_number_and_by_time(redis_server, make, namespace):
    writer = make(redis_server, shards=3)
    for number in range(700):  # more than a page
        writer.set(f"k{number}", 1)
    begun_at = time.time()
    time.sleep(1.0)
    for number in range(700, 720):
        writer.set(f"k{number}", 1)

    last = records_of(run(redis_server, namespace, "--last", "650", "--no-follow"))
    assert [record["names"] for record in last] == [[f"k{number}"] for number in range(70, 720)]
    assert all(record["replayed"] for record in last)

    ago = time.time() - begun_at - 0.5
    recent = records_of(run(redis_server, namespace, "--since", f"{ago:.3f}s", "--no-follow"))
    assert len(recent) <= 20
    assert [record["names"] for record in recent] == [[f"k{number}"] for number in range(720 - len(recent), 720)]

    everything = records_of(run(redis_server, namespace, "--since", "1h", "--no-follow"))
    assert [record["names"] for record in everything] == [[f"k{number}"] for number in range(720)]


def test_the_last_ones_that_are_wanted(redis_server, make, namespace):
    writer = make(redis_server)
    for number in range(300):
        writer.set(f"user:{number}" if number % 100 == 0 else f"page:{number}", 1)
    found = records_of(run(redis_server, namespace, "--last", "2", "--key", "user:*", "--no-follow"))
    assert [record["names"] for record in found] == [["user:100"], ["user:200"]]
    assert records_of(run(redis_server, namespace, "--last", "2", "--kind", "tag", "--no-follow")) == []


@pytest.mark.parametrize("past", [["--last", "5000"], ["--since", "1h"]])
def test_where_the_log_does_not_reach_is_a_gap(redis_server, make, namespace, past):
    writer = make(redis_server, log_length=100)
    for number in range(500):
        writer.set(f"k{number}", 1)
    gap, first, *_ = found = records_of(run(redis_server, namespace, *past, "--no-follow"))
    assert (gap["event"], gap["cause"], gap["missed"], gap["before"]) == ("gap", "log", None, first["version"])
    assert found[-1]["version"] == 500


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def stop_and_cut(server, tailing):
    """Let it miss what comes: it is stopped, and its connections are closed."""
    tailing.process.send_signal(signal.SIGSTOP)
    assert disconnect(server) == 2


def test_what_was_missed_is_replayed(redis_server, begun):
    writer, tailing = begun(redis_server)
    stop_and_cut(redis_server, tailing)
    for number in range(50):
        writer.set(f"k{number}", 1)
    tailing.process.send_signal(signal.SIGCONT)
    tailing.until_said("connected again")
    tailing.until_shown("k49")
    assert tailing.names() == ["first", *[f"k{number}" for number in range(50)]]
    assert {each["replayed"] for each in tailing.messages()} == {True}
    assert tailing.gaps() == []
    writer.set("live", 1)
    tailing.until_shown("live")
    assert not tailing.messages()[-1]["replayed"]
    assert tailing.end() == 0
    assert [line.split()[1] for line in tailing.errors] == ["lost", "connected"]


def test_a_log_that_overflowed_is_a_gap_of_known_size(redis_server, begun):
    writer, tailing = begun(redis_server, log_length=100)
    stop_and_cut(redis_server, tailing)
    for number in range(1000):
        writer.set(f"k{number}", 1)
    tailing.process.send_signal(signal.SIGCONT)
    tailing.until_shown("k999")
    (gap,) = tailing.gaps()
    assert (gap["cause"], gap["after"], gap["shard"]) == ("log", 1, 0)
    assert gap["missed"] > 500
    assert gap["missed"] + len(tailing.messages()) == 1001
    assert tailing.records[2]["version"] == gap["before"]
    assert tailing.end() == 0


def test_a_lost_history_is_a_gap_of_unknown_size(redis_server, begun):
    writer, tailing = begun(redis_server)
    redis_server.flush()
    writer.set("after", 1)
    tailing.until_shown("after")
    assert [(gap["cause"], gap["missed"]) for gap in tailing.gaps()] == [("history", None)]
    assert [each["version"] for each in tailing.messages()] == [1, 1]
    assert len({each["epoch"] for each in tailing.messages()}) == 2
    assert tailing.end() == 0


def test_a_message_that_is_no_message_is_not_taken_for_one(redis_server, begun, namespace):
    writer, tailing = begun(redis_server)
    names = shard_names(namespace, 0, 0)
    with redis_server.client() as plain:
        plain.publish(names.channel, b"\x01damaged")
        plain.xadd(names.log, {"m": b"damaged"}, id="2-0")
        plain.hset(names.clock, mapping={"seq": 2, "nonce": b"n" * 8})
    writer.set("after", 1)
    tailing.until_shown("after")
    assert [(gap["cause"], gap["missed"]) for gap in tailing.gaps()] == [(GapCause.DAMAGED.value, 1)]
    assert tailing.end() == 0


@pytest.mark.parametrize("keep_data", [True, False])
def test_redis_restarts(fresh_server, begun, make, keep_data):
    _, tailing = begun(fresh_server)
    fresh_server.restart(keep_data=keep_data)
    tailing.until_said("connected again")
    make(fresh_server).set("after", 1)
    tailing.until_shown("after")
    assert [gap["cause"] for gap in tailing.gaps()] == ([] if keep_data else ["history"])
    assert any("lost the connection" in line for line in tailing.errors)
    assert tailing.end() == 0


def test_a_redis_that_hangs_is_noticed(fresh_server, begun):
    writer, tailing = begun(fresh_server)
    fresh_server.pause()
    try:
        tailing.until_said("lost the connection")
    finally:
        fresh_server.resume()
    tailing.until_said("connected again")
    writer.set("after", 1)
    tailing.until_shown("after")
    assert tailing.end() == 0


# -- errors ------------------------------------------------------------------------------------------------------------


def one_line(done):
    assert done.stdout == ""
    assert re.fullmatch(r"coherent-cache: [^\n]+\n", done.stderr), done.stderr
    return done.stderr


def test_no_redis(namespace, tmp_path):
    done = run(f"unix://{tmp_path}/nobody", namespace)
    assert done.returncode == 3
    assert "cannot connect to Redis" in one_line(done)


def test_wrong_password(server_factory, namespace):
    server = server_factory()
    with server.client() as plain:
        plain.config_set("requirepass", "right")
    try:
        wrong = server.url.replace("redis://", "redis://:wrong@")
        done = run(wrong, namespace)
        assert done.returncode == 3
        assert "wrong@" not in one_line(done)
        none = run(server, namespace)
        assert none.returncode == 3
        one_line(none)
    finally:
        with server.client(password="right") as plain:
            plain.config_set("requirepass", "")


def test_a_namespace_that_is_not_there(redis_server, namespace, start, make):
    done = run(redis_server, namespace)
    assert done.returncode == 1
    assert "nothing was ever written" in one_line(done)
    tailing = start(redis_server, "--wait")
    make(redis_server).set("first", 1)
    tailing.until_shown("first")
    assert tailing.end() == 0
    other = run(redis_server, namespace, "--shards", "2")
    assert other.returncode == 1
    assert "shards" in one_line(other)


# -- on a terminal -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("no_color", [False, True])
def test_on_a_terminal_it_is_for_people(redis_server, make, namespace, no_color):
    writer = make(redis_server)
    writer.set("user:\x1b[31m7", 1)
    writer.clear()
    environment = os.environ | {"TERM": "xterm-256color"} | ({"NO_COLOR": "1"} if no_color else {})
    terminal, theirs = pty.openpty()
    done = subprocess.run(
        [*COMMAND, "--url", redis_server.url, "--namespace", namespace, "--last", "9", "--no-follow"],
        stdout=theirs, stderr=subprocess.PIPE, env=environment, timeout=PATIENCE, check=True,
    )  # fmt: skip
    os.close(theirs)
    text = os.read(terminal, 10_000).decode()
    os.close(terminal)
    assert done.stderr == b""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    first, second = plain.splitlines()
    assert re.match(r"\d\d:\d\d:\d\d\.\d{3} set +1  'user:\\x1b\[31m7'  by ", first)
    assert re.match(r"\d\d:\d\d:\d\d\.\d{3} clear +2  \(everything\)  by ", second)
    assert ("\x1b[32m" in text) is not no_color
    assert "\x1b[31m7" not in text, "what keys contain is not for the terminal to obey"


# -- a flood -----------------------------------------------------------------------------------------------------------


def flood(server, namespace, count, *, key_length=10, rate=20_000):
    """Publish messages at this rate, as many writes of one instance would."""
    names = shard_names(namespace, 0, 0)
    key = "k" * key_length
    with server.client() as plain:
        epoch, seq, previous = plain.hmget(names.clock, "epoch", "seq", "nonce")
        seq, started = int(seq), time.monotonic()
        script = plain.register_script(FLOOD)
        for begin in range(0, count, 200):
            messages = []
            for number in range(begin + 1, begin + 201):
                nonce = number.to_bytes(8, "big")
                now = int(time.time() * 1e6)
                message = Message(Kind.SET, epoch, seq + number, nonce, previous, now, "a-writer", (f"{key}{number}",))
                messages.append(encode_message(message))
                previous = nonce
            script(keys=[names.clock, names.log], args=[names.channel, seq + begin, previous, *messages])
            if (early := started + (begin + 200) / rate - time.monotonic()) > 0:
                time.sleep(early)


def resident(process):
    """Bytes of memory that a process has."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Watch:
    """Notes the most memory that a process has, until it is left."""

    def __init__(self, process):
        self.process, self.most = process, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        while not self._stop.wait(0.02):
            self.most = max(self.most, resident(self.process))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("read", [True, False], ids=["read", "not read"])
def test_a_flood_neither_grows_it_nor_gets_lost(redis_server, begun, namespace, read):
    _, tailing = begun(redis_server)
    if not read:
        tailing.pause_reading()
    flood(redis_server, namespace, 2_000, key_length=1000)  # whatever it needs, it has by now
    before = resident(tailing.process)
    with Watch(tailing.process) as watch:
        flood(redis_server, namespace, 40_000, key_length=1000)  # 38 MiB of keys, 48 of lines
    tailing.go_on_reading()

    def accounted():
        return len(tailing.messages()) + sum(gap["missed"] for gap in tailing.gaps()) == 42_001

    tailing.until(accounted, "every message is shown, or told to be missing")
    assert watch.most - before < 24 * MEBIBYTE
    assert {gap["cause"] for gap in tailing.gaps()} <= {"output", "log"}
    assert read or tailing.gaps(), "nobody read, and yet nothing is missing"
    assert tailing.end() == 0
