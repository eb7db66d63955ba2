"""Sentinel: a failover under load, an old master that still answers, who is asked and who is believed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time

import pytest
import redis
import redis.sentinel

from coherent_cache import AsyncCoherentCache, CacheUnavailable, CoherentCache
from coherent_cache.events import SubscriberLost
from integration.history import SET, Read, Write, violations
from integration.sentinels import SERVICE, SentinelTopology
from integration.servers import wait_until

pytestmark = pytest.mark.slow

PATIENCE = 30.0
HEARTBEAT, MAX_STALENESS = 0.5, 1.5
OPTIONS = {"heartbeat": HEARTBEAT, "max_staleness": MAX_STALENESS, "timeout": 1.0}


@pytest.fixture
def topology():
    with SentinelTopology() as started:
        yield started


@pytest.fixture
def make(namespace):
    with contextlib.ExitStack() as stack:

        def make_cache(source, **options):
            return stack.enter_context(CoherentCache(source, **{"namespace": namespace, **OPTIONS, **options}))

        yield make_cache


def server_of(cache) -> str:
    return cache._runtime._pool.server


def run_id(server) -> str:
    return server.info()["run_id"]


class Load:
    """Threads that write and read by several caches, and note what they did and saw."""

    def __init__(self, caches):
        self.writes, self.reads = [], []
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=work, args=(number, cache), daemon=True)
            for number, cache in enumerate(caches)
            for work in (self._write, self._read)
        ]
        for thread in self._threads:
            thread.start()

    def _write(self, number, cache):
        count = 0
        while not self._stopping.wait(0.003):
            count += 1
            key, stamp = f"key-{number}-{count % 5}", f"{number}-{count}"
            began, seq, ended = time.monotonic(), None, None
            with contextlib.suppress(CacheUnavailable):
                seq, ended = cache.set(key, stamp).seq, time.monotonic()
            self.writes.append(Write(number, key, SET, seq, stamp, began, ended))

    def _read(self, number, cache):
        count = 0
        while not self._stopping.wait(0.001):
            count += 1
            key, began = f"key-{count % 2}-{count % 5}", time.monotonic()
            try:
                entry = cache.get_entry(key)
            except CacheUnavailable:
                continue
            found = entry is not None
            self.reads.append(
                Read(number, key, found, entry.version.seq if found else None, entry.value if found else None,
                     entry.tier if found else None, entry.age_bound if found else None, began, time.monotonic())
            )  # fmt: skip

    def stop(self):
        self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()


def recovery(caches, old: str, since: float) -> float:
    """Return the seconds from a moment until all are coherent with another server."""
    wait_until(
        lambda: all(server_of(cache) not in (None, old) and cache.state == "coherent" for cache in caches),
        PATIENCE, "all caches follow", interval=0.002,
    )  # fmt: skip
    return max(0.0, time.monotonic() - since)


@pytest.mark.parametrize("protocol", [3, 2])
@pytest.mark.parametrize("way", ["kill", "stop"])
def test_a_failover_under_load(topology, make, way, protocol, record_property):
    caches = [make(topology.url(f"protocol={protocol}")) for _ in range(2)]
    for cache in caches:
        assert cache.wait_ready(PATIENCE)
    old, old_id = topology.master(), server_of(caches[0])
    load = Load(caches)
    wait_until(lambda: len(load.writes) > 100, PATIENCE, "some writes")
    with topology.failover() as switch:
        failed = time.monotonic()
        if way == "kill":
            old.kill()
        else:
            os.kill(old.pid, signal.SIGSTOP)
        switched = switch.wait()
    took = recovery(caches, old_id, switched)
    recovered = time.monotonic()
    record_property("failover_seconds", switched - failed)
    record_property("recovery_seconds", took)
    print(f"{way}: the sentinels took {switched - failed:.2f} s, the caches {took:.3f} s more")
    assert took < 2 * HEARTBEAT + 5.0, "two heartbeats, and a wide margin for a busy machine"
    before = len(load.writes)
    wait_until(lambda: len(load.writes) > before + 100, PATIENCE, "writes go on")
    if way == "stop":
        old.resume()  # it believes to be the master until a sentinel tells it
        time.sleep(2 * MAX_STALENESS)
        assert all(server_of(cache) != old_id for cache in caches)
    load.stop()
    assert {server_of(cache) for cache in caches} == {run_id(topology.master())}

    # Each side of the failover by itself: a failover discards what no replica had, and hands out its numbers again.
    for writes, reads in (
        ([w for w in load.writes if (w.ended or w.began) < failed], [r for r in load.reads if r.ended < failed]),
        ([w for w in load.writes if w.began > recovered], _known(load, recovered)),
    ):
        assert len(writes) > 50
        assert len(reads) > 50
        assert violations(writes, reads, max_staleness=MAX_STALENESS) == []
    # Whatever both hold at the end is what the new master has.
    for number in range(2):
        for count in range(5):
            key = f"key-{number}-{count}"
            last = [w for w in load.writes if w.key == key and w.ended is not None][-1]
            for cache in caches:
                wait_until(lambda c=cache, k=key, w=last: c.get(k) == w.stamp, PATIENCE, "everybody has the last write")


def _known(load, since):
    """Return reads after a moment that found what was written after it."""
    stamps = {write.stamp for write in load.writes if write.began > since and write.seq is not None}
    return [read for read in load.reads if read.began > since and read.stamp in stamps]


def test_an_old_master_that_still_answers(topology, make):
    """Split brain: nobody tells the old master that it is one no more, and its clients reach it."""
    cache = make(topology.url())
    assert cache.wait_ready(PATIENCE)
    old, old_id = topology.master(), server_of(cache)
    direct = make(old.url, local_enabled=False)
    cache.set("a", "before")
    wait_until(topology.copied, PATIENCE, "the replicas have it")
    # The new master is chosen while the old one does not answer; then it goes on, and takes writes, until it is told.
    with topology.failover() as switch:
        os.kill(old.pid, signal.SIGSTOP)
        switch.wait()
    for sentinel in topology.sentinels:
        sentinel.pause()  # nobody is left to tell it
    old.resume()
    try:
        direct.set("a", "by the old one")  # no replica is left, and it takes it
        wait_until(lambda: run_id(old) == old_id, PATIENCE, "it answers")
        stranded = make(old.url)  # knows nothing of sentinels
        assert stranded.wait_ready(PATIENCE)
        assert stranded.get("a") == "by the old one"
    finally:
        for sentinel in topology.sentinels:
            sentinel.resume()
    recovery([cache], old_id, time.monotonic())
    assert cache.get("a") == "before"
    cache.set("a", "by the new one")
    # Demoted, it copies the new master: what was acknowledged there alone is gone.
    wait_until(lambda: old.info("replication")["role"] == "slave", PATIENCE, "it is demoted")
    wait_until(lambda: stranded.state != "coherent", PATIENCE, "a replica serves nobody")
    with pytest.raises(CacheUnavailable):
        direct.set("a", "too late")
    assert cache.get("a") == "by the new one"


def test_min_replicas_to_write_ends_the_old_masters_service(make, namespace):
    """With it a master that is cut off refuses writes, and so proves no local value any more."""
    with SentinelTopology(config={"min-replicas-to-write": "1", "min-replicas-max-lag": "2"}) as topology:
        old = topology.master()
        direct = make(old.url)  # a client that hears of no failover
        assert direct.wait_ready(PATIENCE)
        wait_until(lambda: _sets(direct, "a", 1), PATIENCE, "replicas are in time")
        direct.get("a")
        for server in topology.servers:
            if server is not old:
                server.pause()  # the old master has lost its replicas, as in a partition
        began = time.monotonic()
        wait_until(lambda: not _sets(direct, "a", 2), PATIENCE, "writes are refused")
        wait_until(lambda: direct.state == "disconnected", PATIENCE, "nothing local is served")
        print(f"after {time.monotonic() - began:.2f} s")
        with pytest.raises(CacheUnavailable, match="NOREPLICAS") as caught:
            direct.set("a", 3)
        assert not caught.value.maybe_applied
        for server in topology.servers:
            server.resume()


def _sets(cache, key, value):
    try:
        cache.set(key, value)
    except CacheUnavailable:
        return False
    return True


def test_passwords_of_sentinels_and_of_the_master(make, namespace):
    with SentinelTopology(password="sentinels-own", auth="masters-own") as topology:
        cache = make(topology.url())
        assert cache.wait_ready(PATIENCE)
        cache.set("a", 1)
        manager = redis.sentinel.Sentinel(
            [("127.0.0.1", each.port) for each in topology.sentinels],
            sentinel_kwargs={"password": "sentinels-own"}, password="masters-own",
        )  # fmt: skip
        made = make(manager.master_for(SERVICE))
        assert made.wait_ready(PATIENCE)
        assert made.get("a") == 1
        assert server_of(made) == server_of(cache)

        async def run():
            async with AsyncCoherentCache(topology.url(), namespace=namespace, **OPTIONS) as other:
                assert await other.wait_ready(PATIENCE)
                assert await other.get("a") == 1

        asyncio.run(run())
        wrong = make(topology.url().replace("sentinels-own", "wrong"))
        events = []
        wrong.on_event(events.append)
        with pytest.raises(CacheUnavailable, match="no sentinel names a living master of 'cache'") as caught:
            wrong.get("a")
        assert "wrong" not in str(caught.value).replace("WRONGPASS", "")
        told = wait_until(
            lambda: [e for e in events if isinstance(e, SubscriberLost)], PATIENCE, "the subscriber tells"
        )
        assert "no sentinel" in told[0].cause


def test_sentinels_that_are_away_or_know_too_little_are_passed_over(topology, make):
    cache = make(topology.url())
    assert cache.wait_ready(PATIENCE)
    old, old_id = topology.master(), server_of(cache)
    topology.sentinels[0].pause()  # it misses the failover
    with topology.failover(topology.sentinels[1:]) as switch:
        old.kill()
        switch.wait()
    recovery([cache], old_id, time.monotonic())
    asked = cache._endpoint.sentinels
    assert asked.locate()[1] != old.port
    topology.sentinels[0].resume()
    for sentinel in topology.sentinels[1:]:
        sentinel.pause()
    wait_until(lambda: _refused_or_new(asked, old.port), PATIENCE, "it is not believed")
    for sentinel in topology.sentinels:
        sentinel.resume()


def _refused_or_new(asked, port):
    try:
        return asked.locate()[1] != port
    except redis.ConnectionError as error:
        return "has not heard of the last failover" in str(error) or "down" in str(error)
