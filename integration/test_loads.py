"""P11 with real processes on real Redis: one load in the fleet, none lost with its holder, nothing outdated stored."""

from __future__ import annotations

import threading
import time
from itertools import count
from random import Random

import pytest

from coherent_cache import CoherentCache
from integration.waiting import wait_until

OPTIONS = {"heartbeat": 0.1, "max_staleness": 3.0, "timeout": 5.0}
OVERLAPS = 10_000
PAIRS = 4
MARGIN = 5.0
"""Seconds that a loaded machine may take for what takes none."""


@pytest.fixture
def options(namespace):
    return OPTIONS | {"namespace": namespace}


@pytest.mark.parametrize(("ready", "query"), [(True, ""), (False, ""), (True, "?protocol=2")])
def test_64_threads_in_4_processes_ask_one_cold_key_one_loads(redis_server, processes, options, ready, query):
    told = processes.run_workers(
        4, "stampede", url=redis_server.url + query, options=options, threads=64, seconds=0.5, ready=ready
    )

    assert sum(each["loads"] for each in told) == 1
    values = [value for each in told for value in each["got"]]
    assert len(values) == 256
    assert all(value == values[0] for value in values)
    assert [each["flights"] for each in told] == [0, 0, 0, 0]


def test_without_a_local_tier_one_loads_too(redis_server, processes, options):
    told = processes.run_workers(
        3,
        "stampede",
        url=redis_server.url,
        options=options | {"local_enabled": False},
        threads=16,
        seconds=0.3,
        ready=True,
    )

    assert sum(each["loads"] for each in told) == 1


def test_kill_9_of_the_loader_is_followed_by_one_other_load_after_the_lease_at_most(redis_server, processes, options):
    lease = 1.0
    arguments = {"url": redis_server.url, "options": options | {"lease": lease}}
    victim = processes.spawn("load_for_ever", **arguments)
    victim.wait_message(lambda message: message.get("loading"))
    waiters = [processes.spawn("wait_for_a_load", **arguments) for _ in range(3)]
    for waiter in waiters:
        waiter.wait_message(lambda message: message.get("asking"))
    time.sleep(2 * lease)  # the lease of one that lives is renewed
    with redis_server.client() as plain:
        assert plain.get("loads") is None
    victim.kill()
    killed = time.time()

    told = [waiter.result() for waiter in waiters]

    assert {each["value"] for each in told} == {"load 1"}
    assert max(each["at"] for each in told) - killed < lease + MARGIN


def test_a_loader_that_is_paused_loses_its_lease_and_stores_nothing(redis_server, processes, options):
    lease = 0.5
    arguments = {"url": redis_server.url, "options": options | {"lease": lease}}
    slow = processes.spawn("load_slowly", seconds=0.3, **arguments)
    slow.wait_message(lambda message: message.get("loading"))
    slow.pause()
    told = processes.spawn("wait_for_a_load", **arguments).result()
    slow.resume()

    assert told["value"] == "load 1"
    assert slow.result() == "loaded slowly", "its caller gets it"
    with CoherentCache(redis_server.url, **options) as cache:
        assert cache.get("key") == "load 1"


def test_p13_a_child_forked_during_a_load_waits_for_it_like_any_other_process(redis_server, processes, options):
    told = processes.spawn("fork_during_a_load", url=redis_server.url, options=options).result()

    assert told["child"] == {"own": "the child's", "waited": "the parent's", "loads": 1}
    assert told["parent"] == ["the parent's"]
    assert (told["loads"], told["other"]) == (1, "the child's")


@pytest.mark.slow
def test_10_000_overlaps_of_load_and_invalidation_store_nothing_outdated(redis_server, options):
    """Each loader reads the database; only then it is changed, and the cache told; the order of fill and telling is
    left to chance. What is in Redis or in a local tier in the end must be what the database has now.
    """
    database: dict[str, int] = {}
    numbers = count()
    options |= {"max_entries": 3 * OVERLAPS, "ttl": 3600}
    with (
        CoherentCache(redis_server.url, **options) as here,
        CoherentCache(redis_server.url, **options) as there,
    ):
        assert here.wait_ready(10)
        assert there.wait_ready(10)

        def overlap(rng: Random) -> None:
            key = f"key-{next(numbers)}"
            tag = f"tag-{key}"
            database[key] = 1
            read, spins, way = threading.Event(), rng.choice((0, 0, 30, 300, 1500)), rng.random()
            lag = rng.choice((0, 0, 0, 30, 300, 1500))

            def loader() -> int:
                value = database[key]
                read.set()
                for _ in range(lag):
                    pass
                return value

            def change() -> None:
                read.wait(30)
                database[key] = 2
                for _ in range(spins):
                    pass
                cache = rng.choice((here, there))
                if way < 0.5:
                    cache.delete(key)
                elif way < 0.75:
                    cache.set(key, 2)
                elif way < 0.999:
                    cache.invalidate_tags(tag)
                else:
                    cache.clear()

            changing = threading.Thread(target=change)
            changing.start()
            value = rng.choice((here, there)).get_or_set(key, loader, tags=(tag,))
            changing.join(30)
            assert value in (1, 2)

        def run(seed: int) -> None:
            rng = Random(seed)
            for _ in range(OVERLAPS // PAIRS):
                overlap(rng)

        running = [threading.Thread(target=run, args=(seed,)) for seed in range(PAIRS)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join(110)
        assert len(database) == OVERLAPS
        last = here.set("last", 0)
        wait_until(lambda: there.get("last", min_version=last) == 0, 10, "the last message has come")
        wait_until(lambda: positions(here, there) == {last.seq}, 10, "all messages have come")

        for cache in (here, there):
            held = {key: cache._value(entry) for key, entry in cache._shard.tier.entries.items() if key != "last"}
            assert [key for key, value in held.items() if value != database[key]] == [], "the local tier"
        stored = there.get_many(list(database))
        assert [key for key, value in stored.items() if value != database[key]] == [], "Redis"
        refused = here.stats().fills_refused + there.stats().fills_refused
        assert OVERLAPS / 20 < refused < OVERLAPS, "they did overlap, both ways"


def positions(*caches: CoherentCache) -> set[int | None]:
    return {cache._shard.position for cache in caches}
