"""What only the front for event loops has: hits that suspend nothing, tasks, loops, sharing with threads.

What both fronts have in common is in ``tests/contract``.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import inspect
import secrets
import sys
import threading
from unittest.mock import Mock

import pytest

import coherent_cache
from coherent_cache import MISSING, AsyncCoherentCache, CacheUnavailable, CoherentCache, ConfigError, LoaderDeadlock
from integration.blocking import LoopThread

PATIENCE = 30.0
QUICK = {"namespace": "aio", "heartbeat": 0.05, "max_staleness": 30.0}


def on_loop(test):
    """Run a test that is a coroutine function, with a time limit."""

    @functools.wraps(test)
    def run(**fixtures):
        async def main():
            async with asyncio.timeout(PATIENCE):
                await test(**fixtures)

        asyncio.run(main())

    return run


@pytest.fixture
def url():
    return f"memory://{secrets.token_hex(8)}"


def make(url, **options):
    return AsyncCoherentCache(url, **QUICK | options)


async def ready(url, **options):
    cache = make(url, **options)
    assert await cache.wait_ready(PATIENCE)
    return cache


# -- the surface -------------------------------------------------------------------------------------------------------

ONLY_FOR_THREADS = {"aio", "__enter__", "__exit__"}
ONLY_FOR_LOOPS = {"sharing", "__aenter__", "__aexit__"}
PLAIN = {
    "batch", "cached", "clear_local", "instance_id", "namespace", "on_event", "server", "set_tracer", "state",
    "staleness_bound", "stats",
}  # fmt: skip


def surface(cls):
    """Public names and the methods that Python calls, of what the package itself defines."""
    names = {name for base in cls.__mro__ if base.__module__.startswith("coherent_cache") for name in vars(base)}
    internals = {"__doc__", "__module__", "__init__", "__abstractmethods__", "__annotations__", "__repr__"}
    return {name for name in names - internals if not name.startswith("_") or name.endswith("__")}


def test_both_fronts_have_the_same_operations_with_the_same_signatures():
    threads, loops = surface(CoherentCache), surface(AsyncCoherentCache)
    assert threads - loops == ONLY_FOR_THREADS
    assert loops - threads == ONLY_FOR_LOOPS
    assert inspect.signature(AsyncCoherentCache) == inspect.signature(CoherentCache)
    for name in sorted(threads & loops):
        plain, asynchronous = getattr(CoherentCache, name), getattr(AsyncCoherentCache, name)
        if name.startswith("__") or isinstance(plain, property):
            continue
        assert inspect.iscoroutinefunction(asynchronous) == (name not in PLAIN), name
        assert not inspect.iscoroutinefunction(plain), name
        expected = inspect.signature(plain).parameters
        given = inspect.signature(asynchronous).parameters
        assert list(given) == list(expected), name
        for parameter in expected.values():
            mirrored = given[parameter.name]
            assert (mirrored.kind, mirrored.default) == (parameter.kind, parameter.default), name
            if (name, parameter.name) != ("get_or_set_many", "loader"):  # it returns what is to be awaited
                assert mirrored.annotation == parameter.annotation, name


@on_loop
async def test_mapping_access_is_refused_with_what_to_write_instead(url):
    cache = make(url)
    with pytest.raises(TypeError, match=r"await cache\.get"):
        "k" in cache  # noqa: B015
    with pytest.raises(TypeError, match=r"await cache\.get"):
        cache["k"]
    with pytest.raises(TypeError, match=r"await cache\.set"):
        cache["k"] = 1
    with pytest.raises(TypeError, match=r"await cache\.delete"):
        del cache["k"]


def test_without_a_loop_it_is_made_and_looked_at():
    cache = make("memory://nobody")
    assert (cache.state, cache.namespace, cache.stats().size, cache.clear_local()) == ("connecting", "aio", 0, 0)
    assert repr(cache) == "<AsyncCoherentCache 'aio' at memory://nobody: connecting>"


def test_it_is_exported():
    assert coherent_cache.AsyncCoherentCache is AsyncCoherentCache
    assert {"AsyncBatch", "AsyncCoherentCache"} <= set(coherent_cache.__all__)


# -- hits --------------------------------------------------------------------------------------------------------------


def finish_at_once(coroutine):
    """Run a coroutine that is never to suspend; there is no loop that it could wait on."""
    with pytest.raises(StopIteration) as stop:
        coroutine.send(None)
    return stop.value.value


def test_a_hit_suspends_nothing_and_needs_no_loop(url):
    cache = make(url)

    async def fill():
        assert await cache.wait_ready(PATIENCE)
        await cache.set_many({"k": "v", "l": [1]})

    loop = LoopThread()
    loop.call(fill())
    assert finish_at_once(cache.get("k")) == "v"
    assert finish_at_once(cache.get("l")) == [1]
    assert finish_at_once(cache.get("k", max_staleness=30)) == "v"
    assert finish_at_once(cache.get_many(["k", "l"])) == {"k": "v", "l": [1]}
    assert finish_at_once(cache.get_entry("k")).value == "v"
    assert finish_at_once(cache.get_or_set("k", never)) == "v"
    assert finish_at_once(cache.get_or_set("l", never, ttl=5)) == [1]
    assert finish_at_once(cache.get_or_set("k", never, fail_safe=5)) == "v"
    assert finish_at_once(cache.get_or_set_many(["k", "l"], never)) == {"k": "v", "l": [1]}
    assert cache.stats().misses == 0
    loop.call(cache.close())
    loop.stop()


async def somebody_waits(cache):
    while not cache._runtime.instance.flights._flights["k"].waiters:  # noqa: ASYNC110  # nothing tells
        await asyncio.sleep(0.001)


async def never():
    raise AssertionError("must not be called")


@on_loop
async def test_a_hit_calls_nothing_else_and_makes_no_task(url, monkeypatch):
    async with await ready(url) as cache:
        await cache.set("k", "v")
        loop = asyncio.get_running_loop()
        for name in ("create_task", "create_future", "call_soon", "call_later", "call_at"):
            monkeypatch.setattr(loop, name, Mock(side_effect=AssertionError(name)))
        called = []
        sys.setprofile(lambda frame, event, _: called.append(frame.f_code.co_name) if event == "call" else None)
        try:
            for _ in range(100):
                await cache.get("k")
        finally:
            sys.setprofile(None)
        monkeypatch.undo()
        assert called == ["get"] * 100


@on_loop
async def test_an_operation_is_a_coroutine_like_any_other(url):
    async with await ready(url) as cache:
        await asyncio.create_task(cache.set("k", 1))
        assert await asyncio.gather(cache.get("k"), cache.get("no", 2)) == [1, 2]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(cache.get_or_set(f"k{number}", lambda: 1)) for number in range(5)]
        assert [task.result() for task in tasks] == [1] * 5


# -- loads -------------------------------------------------------------------------------------------------------------


@on_loop
async def test_a_thousand_tasks_that_want_one_cold_key_load_once(url):
    loads = 0

    async def load():
        nonlocal loads
        loads += 1
        await asyncio.sleep(0.05)
        return {"a": 1}

    async with await ready(url, lease=60) as cache:
        found = await asyncio.gather(*[cache.get_or_set("k", load) for _ in range(1000)])
        assert found == [{"a": 1}] * 1000
        assert len({id(each) for each in found}) == 1000, "each may change what it got"
        assert loads == 1
        assert cache.stats().loads == 1


class Loader:
    async def __call__(self):
        await asyncio.sleep(0)
        return threading.get_ident()


async def in_loop():
    await asyncio.sleep(0)
    return threading.get_ident()


async def with_context(context):
    context.ttl = 50
    return threading.get_ident()


@pytest.mark.parametrize(
    ("loader", "here"),
    [
        (in_loop, True),
        (functools.partial(in_loop), True),
        (Loader(), True),
        (with_context, True),
        (lambda: in_loop(), True),  # noqa: PLW0108
        (threading.get_ident, False),
        (lambda: threading.get_ident(), False),  # noqa: PLW0108
        (lambda context: threading.get_ident() if context.key == "k" else None, False),
    ],
)
def test_coroutine_functions_run_on_the_loop_and_plain_ones_in_a_thread(url, loader, here):
    @on_loop
    async def body():
        async with await ready(url) as cache:
            assert (await cache.get_or_set("k", loader) == threading.get_ident()) is here

    body()


@on_loop
async def test_a_plain_loader_does_not_keep_the_loop_from_running(url):
    go_on = threading.Event()
    async with await ready(url) as cache:
        load = asyncio.create_task(cache.get_or_set("k", lambda: go_on.wait(PATIENCE)))
        for _ in range(50):
            await asyncio.sleep(0)
        await cache.set("other", 1)
        assert not load.done()
        go_on.set()
        assert await load is True


variable = contextvars.ContextVar("variable", default=None)


@pytest.mark.parametrize("options", [{}, {"hard_timeout": PATIENCE}])
def test_loaders_have_the_context_of_their_caller(url, options):
    @on_loop
    async def body():
        variable.set("set by the caller")
        async with await ready(url) as cache:

            async def load():
                return variable.get()

            assert await cache.get_or_set("a", load, **options) == "set by the caller"
            assert await cache.get_or_set("b", variable.get, **options) == "set by the caller"

    body()


@on_loop
async def test_an_update_takes_coroutine_functions_too(url):
    async with await ready(url) as cache:

        async def increment(number):
            await asyncio.sleep(0)
            return number + 1

        await asyncio.gather(*[cache.update("k", increment, default=0) for _ in range(20)])
        assert await cache.get("k") == 20


@on_loop
async def test_a_refresh_goes_on_in_a_task_and_close_waits_for_it(url):
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def load():
        begun.set()
        await go_on.wait()
        return "new"

    cache, peer = await ready(url), await ready(url)
    await cache.set("k", "old", ttl=50)
    assert await cache.get_or_set("k", load, ttl=100, refresh_ahead=0.9) == "old"
    await begun.wait()
    closing = asyncio.create_task(cache.close())
    asyncio.get_running_loop().call_later(0.05, go_on.set)
    await closing
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert await peer.get("k", max_staleness=0) == "new"
    await peer.close()


@on_loop
async def test_close_cancels_loads_in_the_background_that_take_too_long(url):
    cache = await ready(url, timeout=0.1)
    await cache.set("k", "old", ttl=50)
    assert await cache.get_or_set("k", asyncio.Event().wait, ttl=100, refresh_ahead=0.9) == "old"
    await cache.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@on_loop
async def test_close_ends_loads_in_the_background_of_a_cache_that_was_closed_by_a_thread(url):
    cache = await ready(url, timeout=0.1)
    await cache.set("k", "old", ttl=50)
    assert await cache.get_or_set("k", asyncio.Event().wait, ttl=100, refresh_ahead=0.9) == "old"
    while not cache._runtime._renewals._due:  # noqa: ASYNC110  # until the loader runs
        await asyncio.sleep(0)
    await asyncio.to_thread(cache._runtime.close)
    await cache.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@on_loop
async def test_what_ends_a_load_in_the_background_does_not_end_the_loop(url):
    async def leave():
        raise SystemExit

    async with await ready(url) as cache:
        seen = []
        cache.on_event(seen.append)
        await cache.set("k", "old", ttl=50)
        assert await cache.get_or_set("k", leave, ttl=100, refresh_ahead=0.9) == "old"
        while asyncio.all_tasks() != {asyncio.current_task()}:  # noqa: ASYNC110  # nothing tells
            await asyncio.sleep(0)
        assert [event.name for event in seen if event.name == "internal_error"] == ["internal_error"]
        assert await cache.get_or_set("k", in_loop, ttl=100, refresh_ahead=0.9, throttle=0) == "old"


@on_loop
async def test_too_many_loads_in_the_background_are_done_in_the_foreground(url, monkeypatch):
    monkeypatch.setattr("coherent_cache.loop_runtime.MAX_BACKGROUND", 0)
    async with await ready(url) as cache:
        assert await cache.get_or_set("k", in_loop, hard_timeout=PATIENCE) == threading.get_ident()
        await cache.set("k", "old", ttl=50)
        assert await cache.get_or_set("k", never, ttl=100, refresh_ahead=0.9, throttle=0) == "old"


# -- loaders that wait for each other ----------------------------------------------------------------------------------


@on_loop
async def test_a_loader_that_waits_for_itself_is_told(url):
    async with await ready(url) as cache:

        async def ask_again():
            return await cache.get_or_set("k", in_loop)

        async def ask_in_tasks():
            return await asyncio.gather(cache.get_or_set("k", in_loop), cache.get_or_set("l", in_loop))

        for loader in (ask_again, ask_in_tasks):
            with pytest.raises(LoaderDeadlock):
                await cache.get_or_set("k", loader)
            with pytest.raises(LoaderDeadlock):
                await cache.get_or_set("k", loader, hard_timeout=PATIENCE)


@on_loop
async def test_tasks_of_one_loader_may_wait_for_each_other(url):
    async with await ready(url) as cache:

        async def ask_in_tasks():
            return await asyncio.gather(*[cache.get_or_set("part", in_loop) for _ in range(5)])

        assert await cache.get_or_set("whole", ask_in_tasks) == [threading.get_ident()] * 5


# -- with threads ------------------------------------------------------------------------------------------------------


@on_loop
async def test_both_fronts_share_one_core(url):
    cache = CoherentCache(url, **QUICK)
    aio = cache.aio
    assert isinstance(aio, AsyncCoherentCache)
    assert cache.aio is aio
    assert AsyncCoherentCache.sharing(cache) is aio
    assert await aio.wait_ready(PATIENCE)
    version = cache.set("k", [1])
    entry = await aio.get_entry("k")
    assert (entry.value, entry.version, entry.tier) == ([1], version, "local")
    await aio.set("l", 2)
    assert cache.get("l") == 2
    assert cache.instance_id == aio.instance_id
    assert (cache.stats().hits, cache.stats().misses) == (aio.stats().hits, aio.stats().misses) == (2, 0)
    seen = []
    aio.on_event(seen.append)
    cache.clear()
    assert seen
    await aio.close()
    with pytest.raises(CacheUnavailable, match="closed"):
        cache.set("k", 1)
    with pytest.raises(CacheUnavailable, match="closed"):
        await aio.set("k", 1)


@on_loop
async def test_closing_the_front_for_threads_closes_both(url):
    cache = CoherentCache(url, **QUICK)
    await cache.aio.set("k", 1)
    cache.close()
    with pytest.raises(CacheUnavailable, match="closed"):
        await cache.aio.get("k")
    await cache.aio.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("leads", ["thread", "task"])
def test_a_thread_and_a_task_that_want_one_cold_key_load_once(url, leads):
    @on_loop
    async def body():
        begun, go_on = threading.Event(), threading.Event()

        def load():
            begun.set()
            assert go_on.wait(PATIENCE)
            return "loaded"

        with CoherentCache(url, **QUICK) as cache:
            assert await cache.aio.wait_ready(PATIENCE)

            def ask_in_thread(loader):
                return asyncio.create_task(asyncio.to_thread(cache.get_or_set, "k", loader))

            def ask_in_task(loader):
                return asyncio.create_task(cache.aio.get_or_set("k", loader))

            first, second = (ask_in_thread, ask_in_task) if leads == "thread" else (ask_in_task, ask_in_thread)
            leader = first(load)
            assert await asyncio.to_thread(begun.wait, PATIENCE)
            follower = second(never)
            await somebody_waits(cache)
            go_on.set()
            assert await asyncio.gather(leader, follower) == ["loaded", "loaded"]
            assert cache.stats().loads == 1

    body()


@on_loop
async def test_a_thread_does_not_block_the_loop_that_it_waits_for(url):
    begun = asyncio.Event()

    async def load():
        begun.set()
        await asyncio.sleep(0.05)
        return "loaded"

    with CoherentCache(url, **QUICK) as cache:
        assert await cache.aio.wait_ready(PATIENCE)
        leader = asyncio.create_task(cache.aio.get_or_set("k", load))
        await begun.wait()
        with pytest.raises(LoaderDeadlock):
            cache.get_or_set("k", lambda: "never")
        assert await leader == "loaded"
        assert cache.get_or_set("l", lambda: "blocking, but no deadlock") == "blocking, but no deadlock"


@on_loop
async def test_the_front_for_threads_refuses_coroutine_functions(url):
    with CoherentCache(url, **QUICK) as cache:
        assert await cache.aio.wait_ready(PATIENCE)
        with pytest.raises(ConfigError, match=r"cache\.aio"):
            cache.get_or_set("k", in_loop)
        with pytest.raises(ConfigError, match=r"cache\.aio"):
            cache.update("k", with_context)
        with pytest.raises(ConfigError, match="AsyncCoherentCache"):
            cache.cached()(in_loop)
        gc.collect()  # no coroutine was left that nobody awaits


# -- cached functions --------------------------------------------------------------------------------------------------


@on_loop
async def test_coroutine_functions_are_cached(url):
    calls = []
    async with await ready(url) as cache:

        @cache.cached(key="square:{number}", ttl=60, tags=["square:{number}"])
        async def square(number):
            """Square."""
            calls.append(number)
            await asyncio.sleep(0)
            return number**2

        assert await asyncio.gather(*[square(7) for _ in range(5)]) == [49] * 5
        assert calls == [7]
        assert square.__doc__ == "Square."
        assert await square.uncached(3) == 9
        assert await cache.get(square.key(7)) == 49
        assert await square.refresh(7) == await square.refresh(8) - 15 == 49
        assert await square.invalidate(7) is True
        assert await square.invalidate(7) is False
        if sys.version_info >= (3, 12):
            assert inspect.iscoroutinefunction(square)


@on_loop
async def test_coroutine_methods_are_cached(url):
    async with await ready(url) as cache:

        class Shop:
            @cache.cached(key="price:{product}")
            async def price(self, product):
                return product * 2

            @classmethod
            @cache.cached(key="name")
            async def name(cls):
                return cls.__name__

        shop = Shop()
        assert await shop.price(4) == await shop.price.refresh(4) == await shop.price.uncached(4) == 8
        assert shop.price.key(4) == "price:4"
        assert await shop.price.invalidate(4)
        assert Shop.price.key(shop, 4) == "price:4"
        assert await Shop.name() == "Shop"


@on_loop
async def test_plain_functions_are_refused_with_where_they_go(url):
    cache = make(url)

    def plain():
        pass

    with pytest.raises(ConfigError, match="for plain functions use CoherentCache"):
        cache.cached()(plain)


# -- loops -------------------------------------------------------------------------------------------------------------


def test_each_loop_has_a_connection_of_its_own_that_ends_with_it(url):
    cache = make(url)
    seen = []

    async def use():
        await cache.set("k", len(seen))
        (found,) = [each for each in cache._loops.values() if each._loop is asyncio.get_running_loop()]
        seen.append(found._io._connection)
        assert found in cache._runtime.attached

    asyncio.run(use())
    asyncio.run(use())
    first, second = seen
    assert first is not second
    assert [first.is_usable(), second.is_usable()] == [False, False]
    assert not cache._runtime.attached
    asyncio.run(cache.close())


@on_loop
async def test_two_loops_at_a_time(url):
    cache = await ready(url)
    other = LoopThread()
    begun, go_on = threading.Event(), threading.Event()

    def load():
        begun.set()
        assert go_on.wait(PATIENCE)
        return "loaded"

    there = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(cache.get_or_set("k", load), other.loop))
    assert await asyncio.to_thread(begun.wait, PATIENCE)
    here = asyncio.create_task(cache.get_or_set("k", never))
    await somebody_waits(cache)
    go_on.set()
    assert await asyncio.gather(there, here) == ["loaded", "loaded"]
    await cache.close()

    async def told():
        with pytest.raises(CacheUnavailable, match="closed"):
            await cache.set("k", 1)

    other.call(told())
    await asyncio.to_thread(other.stop)


def test_a_loop_that_was_closed_without_ado_is_swept_up(url):
    cache = make(url)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(cache.set("k", 1))
    (left,) = cache._loops.values()
    loop.close()
    asyncio.run(cache.set("k", 2))
    assert left not in cache._loops.values()
    assert left not in cache._runtime.attached
    assert not left._io._connection.is_usable()
    asyncio.run(cache.close())


def test_it_is_closed_when_nobody_has_it_any_more(url):
    cache = CoherentCache(url, **QUICK)

    asyncio.run(cache.aio.set("k", 1))
    runtime, aio = cache._runtime, cache.aio
    del cache
    gc.collect()
    assert not runtime.closed
    del aio
    gc.collect()
    assert runtime.closed


@on_loop
async def test_close_is_idempotent_and_ends_the_context(url):
    async with await ready(url) as cache:
        await cache.set("k", 1)
        await asyncio.gather(cache.close(), cache.close())
    await cache.close()
    with pytest.raises(CacheUnavailable, match="closed"):
        await cache.get("k")
    with pytest.raises(CacheUnavailable, match="closed"):
        await cache.wait_ready(1)


@on_loop
async def test_close_wakes_who_waits_until_it_is_ready():
    cache = AsyncCoherentCache("redis://127.0.0.1:1/0", namespace="aio", timeout=0.2)
    waiting = asyncio.create_task(cache.wait_ready(10 * PATIENCE))
    while not cache._runtime._subscriber._watchers:  # noqa: ASYNC110  # turn by turn
        await asyncio.sleep(0)
    await cache.close()
    with pytest.raises(CacheUnavailable, match="closed"):
        await waiting


def test_what_the_end_of_the_loop_interrupts_is_closed_all_the_same(url):
    cache = make(url)

    async def end_while_it_is_closed():
        await cache.set("k", 1)
        assert await cache.wait_ready(PATIENCE)
        closing = asyncio.create_task(cache.close())
        while not cache._runtime.closed:  # noqa: ASYNC110  # turn by turn
            await asyncio.sleep(0)
        return closing

    asyncio.run(end_while_it_is_closed())
    assert not cache._runtime._subscriber._thread.is_alive()
    assert cache._runtime._pool._closed
    assert not cache._runtime.attached
    asyncio.run(cache.close())


@on_loop
async def test_of_two_that_close_it_the_second_does_not_end_what_the_first_is_doing(url, monkeypatch):
    cache = await ready(url)
    other, subscriber = LoopThread(), cache._runtime._subscriber
    await asyncio.to_thread(other.call, cache.set("k", 1))
    stop, found = subscriber.stop, []

    def stop_meanwhile(timeout):
        other.call(cache.close())
        found.append(cache._runtime._pool._closed)
        return stop(timeout)

    monkeypatch.setattr(subscriber, "stop", stop_meanwhile)
    await cache.close()
    await asyncio.to_thread(other.stop)
    assert found == [False]
    assert cache._runtime._pool._closed


@on_loop
async def test_the_fleet_is_asked_in_a_thread(url):
    async with await ready(url) as cache:
        await cache.set("k", 1)
        async with asyncio.timeout(PATIENCE):
            while not (found := await cache.fleet()).instances:  # noqa: ASYNC110  # nothing tells
                await asyncio.sleep(0.01)
        assert [each.instance for each in found.instances] == [cache.instance_id]
        assert (await cache.audit(["k"])).beyond == 0


@on_loop
async def test_wait_ready_gives_up_in_time(url):
    cache = AsyncCoherentCache("redis://127.0.0.1:1/0", namespace="aio", timeout=0.2)
    assert await cache.wait_ready(0.05) is False
    with pytest.raises(CacheUnavailable, match="cannot connect"):
        await cache.set("k", 1)
    await cache.close()


@on_loop
async def test_without_a_local_tier_there_is_no_thread(url):
    async with make(url, local_enabled=False) as cache:
        assert await cache.wait_ready(PATIENCE)
        await cache.set("k", 1)
        assert await cache.get("k", MISSING) == 1
        assert cache._runtime._subscriber._thread is None


@on_loop
async def test_another_number_of_shards_is_refused_before_another_shard_is_touched(url):
    async with (
        await ready(url) as cache,
        make(url, shards=2) as other,
        make(url, shards=3, local_enabled=False) as third,
    ):
        await cache.set("k", 1)
        for each in (other, third):
            with pytest.raises(coherent_cache.NamespaceMismatch):
                await each.set("k", 1)
            with pytest.raises(coherent_cache.NamespaceMismatch):
                await each.wait_ready(PATIENCE)
