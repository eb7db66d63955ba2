"""The local tier end to end: how long it keeps what, how much of it, who shares it, and what it costs."""

from __future__ import annotations

import copy
import gc
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest

from coherent_cache import CoherentCache
from coherent_cache.errors import CacheUnavailable
from coherent_cache.keys import shard_names
from integration.waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 20.0
LONELY = {"heartbeat": 100.0, "max_staleness": 1000.0}  # messages alone tell what happened

both_transports = pytest.mark.parametrize("query", ["", "?protocol=2"], ids=["resp3", "marks"])


@pytest.fixture
def make(namespace):
    made = []

    def make_cache(url, **options):
        defaults = {"namespace": namespace, "heartbeat": 0.1, "max_staleness": 30.0, "timeout": 10.0}
        made.append(CoherentCache(url, **defaults | options))
        return made[-1]

    yield make_cache
    for cache in made:
        cache.close()


@pytest.fixture
def ready(make):
    """Give a maker of caches that are coherent."""

    def make_ready(url, **options):
        cache = make(url, **options)
        assert cache.wait_ready(PATIENCE)
        return cache

    return make_ready


@pytest.fixture
def name(namespace):
    """Give what a user key is called in Redis."""
    names = shard_names(namespace, 0, 0)
    return lambda key: names.value(key.encode())


def held(cache):
    return {key for shard in cache._runtime.instance.shards for key in shard.tier.entries}


def connections(server, cache):
    with server.client() as plain:
        return sorted(client["name"] for client in plain.client_list() if cache.instance_id in client["name"])


def threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("coherent-cache")]


class TestTimeToLive:
    @both_transports
    def test_never_longer_than_redis_has_left(self, redis_server, ready, name, query):
        """P2: whoever fills late holds it as long as Redis does, and no longer."""
        writer, late = ready(redis_server.url), ready(redis_server.url + query)
        with redis_server.client() as plain:
            writer.set("a", "x", ttl=0.8)
            wait_until(lambda: plain.pttl(name("a")) < 500, PATIENCE, "a part of its time is over")
            assert late.get("a") == "x"
            for cache in (writer, late):
                entry = cache.get_entry("a")
                assert entry.tier == "local"
                assert entry.expires_in <= plain.pttl(name("a")) / 1000 + 0.05
            served = 0
            while plain.exists(name("a")):
                served += late.get("a") == "x"
            # Redis does not have it any more: neither has anybody else, from this very moment on.
            assert [cache.get("a") for cache in (writer, late)] == [None, None]
            assert served > 0
            assert late.stats().hits > served / 2

    def test_a_bound_of_its_own(self, redis_server, ready):
        writer, short = ready(redis_server.url), ready(redis_server.url, local_ttl=0.3)
        writer.set("a", "x", ttl=60)
        writer.set("b", "x", ttl=None)
        for key in ("a", "b"):
            assert short.get(key) == "x"
            assert 0 < short.get_entry(key).expires_in <= 0.3
        wait_until(lambda: short.get_entry("a").tier == "redis", PATIENCE, "its local time is over")
        assert short.get_entry("a").tier == "local"  # filled again
        assert writer.get_entry("b").expires_in is None
        short.set("own", 1, ttl=60)
        assert short.get_entry("own").expires_in <= 0.3
        wait_until(lambda: "own" not in held(short), PATIENCE, "it is swept, though nobody asks for it")

    def test_touch_makes_it_shorter_and_longer_everywhere(self, redis_server, ready, name):
        one, other = ready(redis_server.url), ready(redis_server.url)
        one.set("a", "x", ttl=60)
        assert other.get("a") == "x"
        version = other.get_entry("a").version
        with redis_server.client() as plain:
            assert one.touch("a", 0.4)
            assert 0 < plain.pttl(name("a")) <= 400
            wait_until(lambda: "a" not in held(other), PATIENCE, "the peer hears of it")
            for cache in (one, other):
                entry = cache.get_entry("a")
                assert entry.value == "x"
                assert entry.version > version
                assert entry.expires_in <= 0.4
            assert other.touch("a", 60)
            wait_until(lambda: "a" not in held(one), PATIENCE, "the peer hears of it")
            assert one.get_entry("a").expires_in > 50
            assert one.touch("a", None)
            assert plain.pttl(name("a")) == -1
            assert one.get_entry("a").expires_in is None
            assert not one.touch("absent", 5)

    def test_the_default_and_none(self, redis_server, ready, name):
        cache = ready(redis_server.url, ttl=7)
        cache.set("default", 1)
        cache.set("own", 1, ttl=60)
        cache.set("for ever", 1, ttl=None)
        cache.set_many({"many": 1}, ttl=50)
        with redis_server.client() as plain:
            left = [plain.ttl(name(key)) for key in ("default", "own", "for ever", "many")]
        assert left[0] in (6, 7)
        assert left[1] in (59, 60)
        assert left[2] == -1
        assert left[3] in (49, 50)


class TestLimits:
    @pytest.mark.parametrize("policy", ["lru", "lfu", "fifo", "random"])
    def test_entries(self, redis_server, ready, policy):
        writer, reader = ready(redis_server.url), ready(redis_server.url, max_entries=50, policy=policy)
        expected = {f"key-{number}": number for number in range(200)}
        writer.set_many(expected)
        for key, value in expected.items():
            assert reader.get(key) == value
            assert reader.get("key-0") == 0
        stats = reader.stats()
        assert stats.size == 50
        assert stats.evictions >= 150
        if policy in ("lru", "lfu"):  # the one that is asked for all the time stays
            assert reader.get_entry("key-0").tier == "local"
            assert stats.hits >= 199
        assert reader.get_many(expected) == expected
        assert reader.stats().size == 50
        for key in held(reader):
            assert reader.get_entry(key).value == expected[key]

    def test_bytes(self, redis_server, ready):
        writer, reader = ready(redis_server.url), ready(redis_server.url, max_bytes=20_000)
        expected = {f"key-{number}": "x" * (number * 20) for number in range(100)}
        writer.set_many(expected)
        writer.set("huge", b"x" * 50_000)
        for key, value in expected.items():
            assert reader.get(key) == value
            assert reader.stats().bytes <= 20_000
        assert 5 < reader.stats().size < 50
        before = held(reader)
        assert reader.get("huge") == b"x" * 50_000
        assert held(reader) == before
        assert reader.set("huge", b"y" * 50_000)
        assert reader.get("huge") == b"y" * 50_000

    def test_over_shards(self, redis_server, ready):
        cache = ready(redis_server.url, shards=4, max_entries=40)
        expected = {f"key-{number}": number for number in range(500)}
        cache.set_many(expected)
        assert cache.get_many(expected) == expected
        assert cache.stats().size == 40
        assert cache.clear_local() == 40
        assert cache.stats().size == 0
        cache.clear()
        assert cache.get_many(expected) == {}


class TestSharing:
    VALUE: ClassVar = {"list": [1, 2], "dict": {"a": {"b": 1}}}

    def test_copies_by_default(self, redis_server, ready):
        cache, peer = ready(redis_server.url), ready(redis_server.url)
        value = copy.deepcopy(self.VALUE)
        cache.set("a", value)
        value["list"].append("changed by who set it")
        for each in (cache, peer, peer):
            for read in (each.get, lambda key, each=each: each.get_entry(key).value, each.__getitem__,
                         lambda key, each=each: each.get_many([key])[key]):  # fmt: skip
                found = read("a")
                assert found == self.VALUE
                found["list"].append("changed by who got it")
                found["dict"]["a"]["b"] = 2
                del found["dict"]
        assert peer.stats().hits > 0
        assert cache.update("b", lambda _: value)["list"] == [1, 2, "changed by who set it"]
        value["list"].clear()
        assert cache.get("b")["list"] == [1, 2, "changed by who set it"]

    def test_shared_if_asked_for(self, redis_server, ready):
        cache = ready(redis_server.url, copy_values=False)
        value = {"list": [1, 2]}
        cache.set("a", value)
        assert cache.get("a") is cache.get("a")
        assert cache.get("a") is not value  # the caller's own object is never kept
        value["list"].append("changed")
        assert cache.get("a") == {"list": [1, 2]}

    def test_what_cannot_change_is_shared_anyway(self, redis_server, ready):
        cache = ready(redis_server.url)
        cache.set("a", "x" * 1000)
        cache.set("b", ("x" * 1000, 5))
        for key in ("a", "b"):
            assert cache.get_entry(key).tier == "local"
            assert cache.get(key) is cache.get(key)


class TestSwitchedOff:
    def test_a_plain_remote_cache(self, redis_server, make):
        before = threads()
        cache = make(redis_server.url, local_enabled=False)
        peer = make(redis_server.url)
        cache.set("a", [1])
        assert cache.wait_ready(PATIENCE)
        assert [cache.get_entry("a").tier for _ in range(2)] == ["redis", "redis"]
        assert threads() == before
        assert connections(redis_server, cache) == [f"coherent-cache:{cache.instance_id}"]
        peer.set("a", [2])
        assert cache.get("a") == [2]
        assert cache.get_many(["a", "b"]) == {"a": [2]}
        assert "a" in cache
        assert cache.update("a", lambda value: [*value, 3]) == [2, 3]
        assert cache.delete("a")
        assert cache.get("a") is None
        stats = cache.stats()
        assert (stats.enabled, stats.size, stats.hits, stats.state) == (False, 0, 0, "coherent")

    def test_its_writes_are_heard(self, redis_server, make, ready):
        cache, peer = make(redis_server.url, local_enabled=False), ready(redis_server.url, **LONELY)
        cache.set("a", 1)
        assert peer.get("a") == 1
        cache.set("a", 2)
        wait_until(lambda: peer.get("a") == 2, PATIENCE, "the peer hears of it")


class TestCost:
    def test_a_hit_sends_nothing(self, redis_server, ready):
        cache = ready(redis_server.url, **LONELY)
        cache.set("a", [1])
        cache.set("b", 1)
        assert cache.get_entry("a").tier == "local"
        with redis_server.client() as plain:
            before = plain.info("stats")["total_commands_processed"]
            for _ in range(1000):
                cache.get("a")
                cache.get("b")
                cache.get_entry("a")
                cache.get_many(["a", "b"])
                assert "a" in cache
            assert plain.info("stats")["total_commands_processed"] == before + 1  # this count
        assert cache.stats().hits >= 6000

    @pytest.mark.skipif(shutil.which("strace") is None, reason="no strace")
    def test_a_hit_makes_no_system_call(self, redis_server, namespace, tmp_path):
        options = {"namespace": namespace, **LONELY}
        arguments = {"url": redis_server.url, "options": options, "count": 20_000}
        config = {"index": 0, "count": 1, "arguments": arguments}
        trace = tmp_path / "trace"
        done = subprocess.run(
            ["strace", "-o", trace, sys.executable, "-m", "integration.workers", "hits", json.dumps(config)],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        if "PTRACE" in done.stderr or "ptrace" in done.stderr:
            pytest.skip("tracing is not allowed here")
        assert done.returncode == 0, done.stderr
        assert '"hits": 20000' in done.stdout
        # Of the main thread alone: without -f strace follows no other.
        _, between, _ = re.split(r"^getppid\(\).*\n", trace.read_text(), flags=re.MULTILINE)
        calls = between.splitlines()
        # A few times a second the interpreter lends its lock to the subscriber's thread; memory is Python's business.
        assert [line for line in calls if not line.startswith(("futex(", "brk(", "mmap(", "munmap("))] == []
        assert len(calls) < 200


class TestLife:
    @both_transports
    def test_close_ends_everything(self, redis_server, make, query):
        before = threads()
        cache = make(redis_server.url + query)
        assert cache.wait_ready(PATIENCE)
        cache.set("a", 1)
        assert len(threads()) == len(before) + 1
        assert len(connections(redis_server, cache)) == 2
        cache.close()
        assert threads() == before
        wait_until(lambda: not connections(redis_server, cache), PATIENCE, "the server sees it")
        cache.close()
        for call in (lambda: cache.get("a"), lambda: cache.set("a", 2), lambda: cache.wait_ready(1)):
            with pytest.raises(CacheUnavailable, match="closed"):
                call()
        assert "closed" in repr(cache)
        assert cache.stats().size == 0

    def test_close_without_use(self, redis_server, make):
        cache = make(redis_server.url)
        cache.close()
        with pytest.raises(CacheUnavailable):
            cache.get("a")
        assert connections(redis_server, cache) == []

    def test_as_a_context(self, redis_server, namespace):
        before = threads()
        with CoherentCache(redis_server.url, namespace=namespace) as cache:
            cache.set("a", 1)
            assert cache.wait_ready(PATIENCE)
        assert threads() == before
        wait_until(lambda: not connections(redis_server, cache), PATIENCE, "its connections are closed")

    def test_close_while_others_use_it(self, redis_server, make):
        """They get an error, at once and not another one; no connection stays behind."""
        cache = make(redis_server.url, max_connections=4)
        assert cache.wait_ready(PATIENCE)
        outcomes = []
        counts = [0] * 8

        def use(number):
            try:
                while True:
                    cache.set(f"{number}", 1)
                    cache.get_many(["absent", f"{number}"])
                    counts[number] += 1
            except CacheUnavailable:
                outcomes.append("unavailable")
            except BaseException as error:  # noqa: BLE001
                outcomes.append(repr(error))

        users = [threading.Thread(target=use, args=(number,)) for number in range(8)]
        for user in users:
            user.start()
        wait_until(lambda: min(counts) > 5, PATIENCE, "all are busy")
        cache.close()
        for user in users:
            user.join(PATIENCE)
        assert outcomes == ["unavailable"] * 8
        wait_until(lambda: not connections(redis_server, cache), PATIENCE, "all connections are closed")

    @both_transports
    def test_without_close_the_garbage_collector_ends_it(self, redis_server, namespace, query):
        before = threads()
        cache = CoherentCache(redis_server.url + query, namespace=namespace)
        assert cache.wait_ready(PATIENCE)
        cache.set("a", 1)
        identity = cache.instance_id
        assert len(threads()) == len(before) + 1
        del cache
        gc.collect()
        wait_until(lambda: threads() == before, PATIENCE, "the thread ends")
        with redis_server.client() as plain:
            wait_until(
                lambda: all(identity not in client["name"] for client in plain.client_list()),
                PATIENCE, "its connections are closed",
            )  # fmt: skip

    def test_wait_ready_tells_the_truth(self, fresh_server, make):
        cache = make(fresh_server.url, max_staleness=1.0)
        began = time.monotonic()
        assert cache.wait_ready(PATIENCE)
        assert time.monotonic() - began < PATIENCE / 2, "as soon as it is, not when the time is over"
        fresh_server.kill()
        wait_until(lambda: cache.state == "disconnected", PATIENCE, "the loss is noticed")
        began = time.monotonic()
        assert not cache.wait_ready(0.3)
        assert 0.25 < time.monotonic() - began < PATIENCE / 2
        other = make(fresh_server.url)
        assert not other.wait_ready(0.3)
        assert other.state == "connecting"
        cache.close()

    def test_nothing_is_printed(self, redis_server, namespace):
        """Not when it starts, not when it is cut, not when it ends, or is not even closed."""
        program = f"""
import time, redis
from coherent_cache import CoherentCache
from coherent_cache.errors import CoherentCacheError
cache = CoherentCache({redis_server.url!r}, namespace={namespace!r}, heartbeat=0.05, max_staleness=0.3)
cache.wait_ready(20)
cache.set("a", 1)
resyncs = cache.stats().resyncs
plain = redis.Redis.from_url({redis_server.url!r})
plain.publish("cc:{{{namespace}/0}}:messages:0", b"nonsense")
plain.client_kill_filter(_type="pubsub")
plain.set("cc:{{{namespace}/0}}:v:b", b"foreign")
try:
    cache.get("b")
except CoherentCacheError:
    pass
cache.on_event(lambda event: 1 / 0)
while cache.stats().resyncs <= resyncs or cache.state != "coherent":
    time.sleep(0.01)
plain.flushall()
while cache.get("a") is not None:
    time.sleep(0.01)
"""
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
