"""The front for event loops on a real Redis: nothing blocks, leaks or hangs, whatever the network does."""

from __future__ import annotations

import asyncio
import functools
import gc
import time
import warnings

import pytest
import redis.asyncio
from blockbuster import BlockBuster, BlockingError

from coherent_cache import AsyncCoherentCache, CacheUnavailable, CoherentCache
from coherent_cache.testing.fault_proxy import commands
from integration.waiting import wait_until

PATIENCE = 30.0
OPTIONS = {"heartbeat": 0.1, "max_staleness": 10.0, "timeout": 5.0}
KEYS = [f"key-{number}" for number in range(50)]


def on_loop(coroutine):
    async def main():
        async with asyncio.timeout(4 * PATIENCE):
            return await coroutine

    return asyncio.run(main())


@pytest.fixture
def make(namespace):
    def make_cache(url, **options):
        return AsyncCoherentCache(url, **OPTIONS | {"namespace": namespace} | options)

    return make_cache


async def ready(cache):
    assert await cache.wait_ready(PATIENCE)
    return cache


def connections(server, cache):
    """Names of the connections that Redis knows of an instance."""
    with server.client() as plain:
        own = f"coherent-cache:{cache.instance_id}"
        names = [each["name"].removeprefix(own) for each in plain.client_list() if each["name"].startswith(own)]
    return sorted(name or "commands" for name in names)


async def load():
    await asyncio.sleep(0.001)
    return "loaded"


async def load_many(keys):
    await asyncio.sleep(0)
    return dict.fromkeys(keys, "loaded")


async def increment(number):
    await asyncio.sleep(0)
    return (number or 0) + 1


async def every_operation(cache):
    await cache.set("a", 1, tags=["t"])
    await cache.set("a", {"b": 2}, ttl=50, wait=0.2)
    await cache.set_many({"b": 1, "c": 2})
    assert await cache.get("a") == {"b": 2}
    assert await cache.get("a", max_staleness=0) == {"b": 2}
    assert (await cache.get_entry("b")).value == 1
    assert await cache.get_many(["a", "b", "no"]) == {"a": {"b": 2}, "b": 1}
    assert await cache.touch("a", 20)
    assert await cache.update("n", increment) == 1
    assert await cache.get_or_set("l", load, tags=["t"]) == "loaded"
    assert await cache.get_or_set("m", lambda: "plain") == "plain"
    assert await cache.get_or_set("l2", load, hard_timeout=PATIENCE) == "loaded"
    assert (await cache.get_or_set_entry("o", load, fail_safe=5)).tier == "loader"
    assert await cache.get_or_set("o", load, ttl=0.5, refresh_ahead=0.999) == "loaded"
    assert await cache.get_or_set_many(["p", "q"], load_many) == {"p": "loaded", "q": "loaded"}
    async with cache.batch() as batch:
        batch.set("r", 1)
        batch.delete("b")
    assert await cache.warm(["r"]) == 1
    assert await cache.delete("a")
    assert await cache.delete_many(["c", "r"]) == 2

    @cache.cached(key="cached:{number}", ttl=60)
    async def square(number):
        return number**2

    assert await square(3) == await square.refresh(3) == 9
    assert await square.invalidate(3)
    await cache.invalidate_tags("t")
    await cache.clear()
    assert (cache.stats().errors, cache.state, cache.clear_local() >= 0) == (0, "coherent", True)


# -- nothing blocks the loop -------------------------------------------------------------------------------------------


@pytest.fixture
def blockbuster():
    buster = BlockBuster()
    buster.activate()
    yield buster
    buster.deactivate()


def test_blocking_is_noticed(blockbuster):
    async def main():
        time.sleep(0)  # noqa: ASYNC251  # that is what is to be noticed

    with pytest.raises(BlockingError):
        asyncio.run(main())


@pytest.mark.parametrize("query", ["", "?protocol=2"], ids=["resp3", "marks"])
@pytest.mark.parametrize("options", [{}, {"shards": 3}, {"local_enabled": False}], ids=["plain", "shards", "remote"])
def test_no_operation_blocks_the_loop(redis_server, make, query, options, blockbuster):
    async def main():
        cache = make(redis_server.url + query, **options)
        async with cache:
            await ready(cache)
            operation = every_operation(cache)
            if options.get("local_enabled", True):
                await operation
            else:
                operation.close()
                await cache.set("k", 1)
                assert await cache.get_or_set("l", load) == "loaded"
                assert await cache.get_many(["k", "l"]) == {"k": 1, "l": "loaded"}

    on_loop(main())


def test_nothing_blocks_the_loop_while_redis_is_away(fresh_server, make, blockbuster):
    async def main():
        async with make(fresh_server.url, timeout=0.5) as cache:
            await ready(cache)
            await cache.set("k", 1)
            await asyncio.to_thread(fresh_server.kill)
            for _ in range(3):
                with pytest.raises(CacheUnavailable):
                    await cache.set("k", 2)
            await asyncio.to_thread(functools.partial(fresh_server.restart, keep_data=False))
            await until_written(cache, "k", 3)

    on_loop(main())


async def until_written(cache, key, value):
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                await cache.set(key, value)
            except CacheUnavailable:
                await asyncio.sleep(0.02)
            else:
                return


# -- nothing leaks -----------------------------------------------------------------------------------------------------


def test_a_loop_has_one_connection_for_all_its_tasks(redis_server, make):
    async def main():
        async with make(redis_server.url) as cache:
            await ready(cache)
            await asyncio.gather(*[cache.set(f"k{number}", number) for number in range(500)])
            cache.clear_local()
            assert await asyncio.gather(*[cache.get(f"k{number}") for number in range(500)]) == [*range(500)]
            assert await asyncio.gather(*[cache.get_or_set("cold", load) for _ in range(1000)]) == ["loaded"] * 1000
            assert cache.stats().loads == 1
            return await asyncio.to_thread(connections, redis_server, cache), cache

    open_meanwhile, cache = on_loop(main())
    assert open_meanwhile == [":subscriber", "commands"]
    wait_until(lambda: not connections(redis_server, cache), PATIENCE, "all are closed")


def test_tasks_that_are_cancelled_cost_no_connection(redis_server, make):
    long = {"lease": 600, "lease_wait": 600}

    async def main():
        async with make(redis_server.url, **long) as cache, make(redis_server.url, **long) as peer:
            await ready(cache)
            await cache.set("warm", 1)
            made = cache._on_loop()._io._connection
            for turns in range(30):
                operations = [
                    cache.get("absent"), cache.set(f"k{turns}", 1), cache.get_or_set(f"l{turns}", load),
                    cache.get_or_set_many([f"m{turns}", f"n{turns}"], load_many), cache.update("n", increment),
                    cache.get_or_set(f"o{turns}", load, hard_timeout=PATIENCE), cache.clear(wait=0.05),
                ]  # fmt: skip
                tasks = [asyncio.create_task(operation) for operation in operations]
                for _ in range(turns):
                    await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            assert cache._on_loop()._io._connection is made
            leases = [f"{kind}{turns}" for kind in "lmno" for turns in range(30)]
            async with asyncio.timeout(PATIENCE):  # less than the time of a lease
                await peer.get_or_set_many(leases, load_many)
            async with asyncio.timeout(PATIENCE):
                while asyncio.all_tasks() != {asyncio.current_task()}:  # noqa: ASYNC110  # nothing tells
                    await asyncio.sleep(0.001)
            shard = cache._runtime.instance.shards[0]
            left = [shard._tokens, shard._waiters, shard._collectors, len(cache._runtime.instance.flights)]
            assert not any(left)
            return await asyncio.to_thread(connections, redis_server, cache)

    assert on_loop(main()) == [":subscriber", "commands"]


def test_the_connection_ends_with_its_loop(redis_server, make):
    cache = make(redis_server.url)
    for value in range(3):
        asyncio.run(cache.set("k", value))
        wait_until(lambda: connections(redis_server, cache) == [":subscriber"], PATIENCE, "that of the loop is closed")
    asyncio.run(cache.close())


def test_the_connection_of_a_loop_that_was_closed_without_ado_is_ended_by_the_next(redis_server, make):
    cache = make(redis_server.url)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(cache.set("k", 1))
    loop.close()
    assert connections(redis_server, cache) == [":subscriber", "commands"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # asyncio's: the loop was closed over it
        asyncio.run(cache.set("k", 2))
        del loop
        gc.collect()
    wait_until(lambda: connections(redis_server, cache) == [":subscriber"], PATIENCE, "both are closed")
    asyncio.run(cache.close())


def test_a_client_of_redis_asyncio_gives_its_options(redis_server, make):
    async def main():
        client = redis.asyncio.Redis.from_url(redis_server.url, decode_responses=True)
        async with make(client) as cache:
            await ready(cache)
            await every_operation(cache)
        await client.aclose()

    on_loop(main())


# -- whatever happens --------------------------------------------------------------------------------------------------


class Traffic:
    """Tasks that read and write until they are told to stop; only CacheUnavailable is expected."""

    def __init__(self, cache, count=20):
        self._cache = cache
        self.done = self.refused = 0
        self._tasks = [asyncio.create_task(self._run(number)) for number in range(count)]

    async def _run(self, number):
        turn = 0
        while True:
            turn += 1
            key = KEYS[(number * 7 + turn) % len(KEYS)]
            operation = (
                self._cache.get(key), self._cache.set(key, [number, turn]), self._cache.get_or_set(key, load),
                self._cache.get_many(KEYS[:5]), self._cache.delete(key),
            )  # fmt: skip
            chosen = operation[turn % 5]
            for other in operation:
                if other is not chosen:
                    other.close()
            try:
                async with asyncio.timeout(PATIENCE):
                    await chosen
            except CacheUnavailable:
                self.refused += 1
                await asyncio.sleep(0.01)
            else:
                self.done += 1

    async def until_done(self, more):
        target = self.done + more
        async with asyncio.timeout(PATIENCE):
            while self.done < target:
                assert not any(task.done() for task in self._tasks)
                await asyncio.sleep(0.005)

    async def stop(self):
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results), results


async def all_equal(cache, peer):
    """Once it is quiet, both hold what Redis holds."""
    await ready(cache)
    assert await asyncio.to_thread(peer.wait_ready, PATIENCE)
    async with asyncio.timeout(PATIENCE):
        while True:
            there = await cache.get_many(KEYS)
            remote = {key: value for key in KEYS if (value := await cache.get(key, max_staleness=0)) is not None}
            if there == remote == await asyncio.to_thread(peer.get_many, KEYS):
                return
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("keep_data", [True, False])
def test_a_restart_of_redis_under_traffic(fresh_server, make, namespace, keep_data):
    async def main():
        peer = CoherentCache(fresh_server.url, **OPTIONS | {"namespace": namespace})
        async with make(fresh_server.url) as cache:
            await ready(cache)
            traffic = Traffic(cache)
            await traffic.until_done(200)
            await asyncio.to_thread(fresh_server.restart, keep_data=keep_data)
            await traffic.until_done(200)
            await traffic.stop()
            await all_equal(cache, peer)
            assert await asyncio.to_thread(connections, fresh_server, cache) == [":subscriber", "commands"]
        await asyncio.to_thread(peer.close)

    on_loop(main())


def test_connections_that_are_cut_under_traffic(redis_server, make, namespace, fault_proxy):
    async def main():
        peer = CoherentCache(redis_server.url, **OPTIONS | {"namespace": namespace})
        async with make(fault_proxy.url) as cache:
            await ready(cache)
            traffic = Traffic(cache)
            for turn in range(10):
                await traffic.until_done(50)
                await asyncio.to_thread(functools.partial(fault_proxy.cut, reset=turn % 2 == 0))
            await traffic.until_done(50)
            await traffic.stop()
            assert traffic.refused
            await all_equal(cache, peer)
        await asyncio.to_thread(peer.close)

    on_loop(main())


def test_a_dead_connection_is_noticed_in_time_and_can_be_given_up_at_once(make, fault_proxy):
    async def main():
        async with make(fault_proxy.url, timeout=1.0) as cache:
            await ready(cache)
            await cache.set("k", 1)
            hole = await asyncio.to_thread(functools.partial(fault_proxy.black_hole, where=commands))
            given_up = asyncio.create_task(cache.set("k", 2))
            waiting = asyncio.create_task(cache.set("l", 2))
            await asyncio.sleep(0.05)
            given_up.cancel()
            await asyncio.wait([given_up])
            assert not waiting.done()
            with pytest.raises(CacheUnavailable) as caught:
                await waiting
            assert caught.value.maybe_applied
            await asyncio.to_thread(hole.end)
            await until_written(cache, "k", 3)
            assert await cache.get("k") == 3

    on_loop(main())


def test_scripts_that_redis_has_forgotten_are_sent_again(redis_server, make):
    async def main():
        async with make(redis_server.url) as cache:
            await ready(cache)
            for _ in range(3):
                with redis_server.client() as plain:
                    plain.script_flush()
                await asyncio.gather(*[cache.set(f"k{number}", 1) for number in range(5)])
                assert await cache.get_or_set("l", load) == "loaded"
                await cache.delete("l")

    on_loop(main())


def test_a_redis_that_is_full_is_read_and_loaded_past(fresh_server, make):
    async def main():
        async with make(fresh_server.url) as cache:
            await ready(cache)
            await cache.set("k", 1)
            with fresh_server.client() as plain:
                plain.config_set("maxmemory-policy", "noeviction")
                plain.config_set("maxmemory", 1)
            cache.clear_local()
            assert await cache.get("k") == 1
            with pytest.raises(CacheUnavailable) as caught:
                await cache.set("k", 2)
            assert not caught.value.maybe_applied
            assert await cache.get_or_set("l", load) == "loaded"

    on_loop(main())
