"""A task is cancelled at every point where it waits, in every operation: nothing is left, and somebody takes over.

``interrupt`` counts how often a coroutine suspends its task, and cancels it at one of these points: when it has just
begun to wait there, or so many turns of the loop later, so that what it waits for may be there already; perhaps once
more while it cleans up.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Generator
from functools import partial
from math import inf

import pytest

from coherent_cache import MISSING, AsyncCoherentCache

PATIENCE = 30.0
MOST_POINTS = 60


class Interrupting:
    """Awaits a coroutine; cancels the task at one of the points where it waits.

    Attributes:
        reached: whether it came to that point.
    """

    def __init__(self, coroutine, point, turns, twice):
        self._coroutine = coroutine
        self._point, self._turns, self._twice = point, turns, twice
        self.reached = False

    def __await__(self) -> Generator[object, None, object]:
        step, points = partial(self._coroutine.send, None), 0
        while True:
            try:
                waits_for = step()
            except StopIteration as stop:
                return stop.value
            points += 1
            if points == self._point or (self._twice and self.reached):
                self.reached = True
                self._cancel(asyncio.current_task(), self._turns if points == self._point else 0)
            try:
                yield waits_for
            except BaseException as error:  # noqa: BLE001  # cancelled
                step = partial(self._coroutine.throw, error)
            else:
                step = partial(self._coroutine.send, None)

    def _cancel(self, task, turns):
        if turns:
            asyncio.get_running_loop().call_soon(self._cancel, task, turns - 1)
        else:
            task.cancel()


async def interrupt(call, point, turns, twice):
    """Call and cancel; return whether the point was reached, and what came of it."""

    async def body():
        return await interrupting

    interrupting = Interrupting(call(), point, turns, twice)
    task = asyncio.create_task(body())
    (result,) = await asyncio.gather(task, return_exceptions=True)
    assert interrupting.reached or not isinstance(result, BaseException), result
    return interrupting.reached, result


async def until(predicate, description):
    async with asyncio.timeout(PATIENCE):
        while not predicate():  # noqa: ASYNC110  # turn by turn
            await asyncio.sleep(0)
    assert predicate(), description


async def nothing_is_left(cache):
    """What goes on in the background ends; then nothing is left."""
    (on_loop,) = cache._loops.values()
    await until(lambda: not on_loop._tasks, "no task of the cache's own")
    assert {task for task in asyncio.all_tasks() if not task.done()} == {asyncio.current_task()}
    instance = cache._runtime.instance
    assert len(instance.flights) == 0
    for shard in instance.shards:
        assert not shard._tokens, "no token"
        assert not shard._waiters, "no waiter"
        assert not shard._collectors, "no receipt is waited for"
    assert not cache._runtime._renewals._due, "no lease is renewed"


def has_begun(cache):
    return any(flight.begun for flight in cache._runtime.instance.flights._flights.values())


async def load_slowly():
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return "loaded"


async def load_many(keys):
    await asyncio.sleep(0)
    return dict.fromkeys(keys, "loaded")


async def increment(number):
    await asyncio.sleep(0)
    return (number or 0) + 1


async def batched(cache):
    async with cache.batch() as batch:
        batch.set("k", 1)
        batch.delete("l")


async def entered(cache):
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(cache.get_or_set("k", load_slowly))


async def fails(cache):
    with pytest.raises(KeyError):
        await cache.get_or_set("k", lambda: {}["no"], fail_safe=1)


LOADS = {
    "get_or_set": lambda cache: cache.get_or_set("k", load_slowly),
    "get_or_set of a plain loader": lambda cache: cache.get_or_set("k", lambda: "loaded"),
    "get_or_set of nothing": lambda cache: cache.get_or_set("k", lambda: MISSING),
    "get_or_set that fails": fails,
    "get_or_set with a time-out": lambda cache: cache.get_or_set("k", load_slowly, hard_timeout=PATIENCE),
    "get_or_set_entry": lambda cache: cache.get_or_set_entry("k", load_slowly, tags=["t"]),
    "get_or_set_many": lambda cache: cache.get_or_set_many(["k", "l", "m"], load_many),
    "get_or_set in a task group": entered,
}

OTHERS = {
    "get": lambda cache: cache.get("k"),
    "get_entry": lambda cache: cache.get_entry("k"),
    "get_many": lambda cache: cache.get_many(["k", "l"]),
    "set": lambda cache: cache.set("k", 2),
    "set, acknowledged": lambda cache: cache.set("k", 2, wait=0.01),
    "set_many": lambda cache: cache.set_many({"k": 2, "l": 2}),
    "delete": lambda cache: cache.delete("k"),
    "delete_many": lambda cache: cache.delete_many(["k", "l"]),
    "touch": lambda cache: cache.touch("k", 50),
    "update": lambda cache: cache.update("k", increment),
    "clear": lambda cache: cache.clear(),
    "invalidate_tags": lambda cache: cache.invalidate_tags("t"),
    "batch": batched,
    "warm": lambda cache: cache.warm(["k"]),
    "wait_ready": lambda cache: cache.wait_ready(),
}

WAYS = [(0, False), (1, False), (2, False), (0, True)]


def make(url, **options):
    return AsyncCoherentCache(
        url, namespace="cancelled", lease=600, lease_wait=600, heartbeat=5, max_staleness=60, **options
    )


def run_with_peer(body):
    async def main():
        url = f"memory://{secrets.token_hex(8)}"
        async with make(url) as cache, make(url) as peer:
            assert await cache.wait_ready(PATIENCE)
            assert await peer.wait_ready(PATIENCE)
            async with asyncio.timeout(4 * PATIENCE):
                await body(cache, peer)

    asyncio.run(main())


@pytest.mark.parametrize(("turns", "twice"), WAYS)
@pytest.mark.parametrize("name", OTHERS)
def test_an_operation_leaves_nothing_behind_wherever_it_is_cancelled(name, turns, twice):
    async def body(cache, peer):
        for point in range(1, MOST_POINTS):
            await peer.set_many({"k": 1, "l": 1}, tags=["t"])
            cache.clear_local()
            reached, _ = await interrupt(partial(OTHERS[name], cache), point, turns, twice)
            await nothing_is_left(cache)
            # What it leaves open may have happened; nothing older than that is seen here from now on.
            version = await peer.set("k", "newer")
            assert await cache.get("k", min_version=version) == "newer"
            if not reached:
                return
        pytest.fail(f"more than {MOST_POINTS} points")

    run_with_peer(body)


@pytest.mark.parametrize(("turns", "twice"), WAYS)
@pytest.mark.parametrize("name", LOADS)
def test_a_load_leaves_no_lease_behind_wherever_it_is_cancelled(name, turns, twice):
    async def body(cache, peer):
        for point in range(1, MOST_POINTS):
            await peer.delete_many(["k", "l", "m"])
            cache.clear_local()
            reached, _ = await interrupt(partial(LOADS[name], cache), point, turns, twice)
            await nothing_is_left(cache)
            # A lease that nobody holds any more would keep the peer waiting for ten minutes.
            async with asyncio.timeout(PATIENCE):
                values = await peer.get_or_set_many(["k", "l", "m"], lambda keys: dict.fromkeys(keys, "taken over"))
            assert set(values.values()) <= {"loaded", "taken over"}
            if not reached:
                return
        pytest.fail(f"more than {MOST_POINTS} points")

    run_with_peer(body)


@pytest.mark.parametrize(("turns", "twice"), WAYS)
@pytest.mark.parametrize("timed", [{}, {"hard_timeout": PATIENCE}])
def test_who_waits_takes_over_wherever_the_load_is_cancelled(turns, twice, timed):
    async def body(cache, peer):
        loads = 0

        async def load():
            nonlocal loads
            loads += 1
            return await load_slowly()

        for point in range(1, MOST_POINTS):
            await peer.delete("k")
            cache.clear_local()
            leader = asyncio.create_task(interrupt(partial(cache.get_or_set, "k", load, **timed), point, turns, twice))
            async with asyncio.timeout(PATIENCE):
                others = await asyncio.gather(*[cache.get_or_set("k", load, **timed) for _ in range(5)])
            assert set(others) == {"loaded"}
            reached, result = await leader
            assert reached or result == "loaded"
            await nothing_is_left(cache)
            assert await peer.get("k") == "loaded"
            if not reached:
                assert loads <= 2 * point
                return
        pytest.fail(f"more than {MOST_POINTS} points")

    run_with_peer(body)


@pytest.mark.parametrize(("turns", "twice"), WAYS)
def test_a_waiter_that_is_cancelled_is_forgotten_while_the_load_goes_on(turns, twice):
    async def body(cache, _peer):
        for point in range(1, MOST_POINTS):
            await cache.delete("k")
            go_on = asyncio.Event()

            async def load(go_on=go_on):
                await go_on.wait()
                return "loaded"

            leader = asyncio.create_task(cache.get_or_set("k", load))
            await until(partial(has_begun, cache), "the load has begun")
            waiting = asyncio.create_task(interrupt(partial(cache.get_or_set, "k", load), point, turns, twice))
            for _ in range(20):
                await asyncio.sleep(0)
            if waiting.done():
                assert not cache._runtime.instance.flights._flights["k"].waiters
            go_on.set()
            reached, result = await waiting
            assert await leader == "loaded"
            assert reached or result == "loaded"
            await nothing_is_left(cache)
            if not reached:
                return
        pytest.fail(f"more than {MOST_POINTS} points")

    run_with_peer(body)


def test_what_a_cancelled_write_may_have_changed_is_asked_of_redis():
    async def body(cache, peer):
        await cache.set("k", "old")
        reached, _ = await interrupt(partial(cache.set, "k", "new"), 1, 0, twice=False)
        assert reached
        misses = cache.stats().misses
        assert await cache.get("k") == "new", "it was sent"
        assert cache.stats().misses == misses + 1
        assert await peer.get("k", max_staleness=0) == "new"

    run_with_peer(body)


def test_a_loader_is_cancelled_with_its_caller():
    async def body(cache, _peer):
        ended = []

        async def load():
            try:
                await asyncio.sleep(PATIENCE)
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await cache.get_or_set("k", load)
        assert ended == ["cancelled"]
        await nothing_is_left(cache)

    run_with_peer(body)


def test_closing_in_a_task_that_is_cancelled_closes_all_the_same():
    async def main():
        cache = make(f"memory://{secrets.token_hex(8)}")
        await cache.set("k", 1)
        reached, _ = await interrupt(cache.close, 1, 0, twice=False)
        assert reached
        await cache.close()
        assert repr(cache).endswith("closed>")

    asyncio.run(main())


def test_the_end_of_the_loop_cancels_a_load_that_gives_its_lease_up():
    url = f"memory://{secrets.token_hex(8)}"
    cache, peer = make(url), make(url)

    async def begin():
        assert await cache.wait_ready(PATIENCE)
        asyncio.get_running_loop().create_task(cache.get_or_set("k", partial(asyncio.sleep, PATIENCE)))
        await until(partial(has_begun, cache), "the load has begun")

    asyncio.run(begin())
    assert len(cache._runtime.instance.flights) == 0

    async def take_over():
        async with cache, peer, asyncio.timeout(PATIENCE):
            assert await peer.get_or_set("k", lambda: "mine") == "mine"

    asyncio.run(take_over())


@pytest.mark.parametrize("options", [{"hard_timeout": PATIENCE}, {"ttl": 60, "refresh_ahead": 0.9}])
def test_a_load_in_the_background_that_is_cancelled_before_its_first_step_ends(options):
    """As the end of the loop does it to one that was spawned in the last turn."""

    async def body(cache, _):
        if "ttl" in options:
            await cache.set("k", "old", ttl=30)
        (on_loop,) = cache._loops.values()
        spawn, spawned = on_loop.spawn, []

        def cancelled_at_once(operation):
            spawned.append(spawn(operation))
            for load in on_loop._loads:
                load.cancel()
            return spawned[-1]

        on_loop.spawn = cancelled_at_once
        await asyncio.gather(cache.get_or_set("k", load_slowly, **options), return_exceptions=True)
        assert spawned == [True]
        await nothing_is_left(cache)
        assert inf not in cache._runtime.instance.flights._refreshes.values()
        on_loop.spawn = spawn
        await cache.delete("k")
        assert await cache.get_or_set("k", load_slowly) == "loaded"

    run_with_peer(body)
