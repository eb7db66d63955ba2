"""Workers that fork, in all the ways in which a process with a cache in it may be forked (rule P13)."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import multiprocessing
import os
import select
import signal
import threading
import time
import traceback
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import redis

from coherent_cache import AsyncCoherentCache, CoherentCache
from coherent_cache.errors import CoherentCacheError
from integration.waiting import wait_until
from integration.workers import worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from integration.workers import Context

READY = 15.0  # seconds until an instance must be coherent
CHILD = 30.0  # seconds that a child may live; the kernel ends it then, whatever it waits for
KEYS = [f"key-{number}" for number in range(20)]


class Child:
    """A forked child, which runs one function and reports what it returns."""

    def __init__(self, function: Callable[[], Any]) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            signal.alarm(int(CHILD))
            status = 1
            try:
                os.close(reading)
                answer = json.dumps({"result": function()})
                status = 0
            except BaseException:  # noqa: BLE001
                answer = json.dumps({"error": traceback.format_exc()})
            os.write(writing, answer.encode())
            os._exit(status)
        os.close(writing)
        self._reading = reading

    def result(self) -> Any:
        """Wait for its end; return what it returned."""
        said = b""
        while True:
            ready, _, _ = select.select([self._reading], [], [], CHILD + 5)
            assert ready, "the child does not end"
            more = os.read(self._reading, 65536)
            if not more:
                break
            said += more
        os.close(self._reading)
        _, status = os.waitpid(self.pid, 0)
        assert said, f"the child ended with status {status} and said nothing"
        answer = json.loads(said)
        assert "result" in answer, answer["error"]
        return answer["result"]


@contextmanager
def busy_threads(cache: CoherentCache, count: int) -> Iterator[list[str]]:
    """Read and write in several threads; gives the list of their errors."""
    errors: list[str] = []
    stop = threading.Event()

    def run(number: int) -> None:
        try:
            turn = 0
            while not stop.is_set():
                turn += 1
                key = KEYS[(turn * 7 + number) % len(KEYS)]
                if turn % 5 == 0:
                    cache.set(f"busy-{key}", turn)
                cache.get(f"busy-{key}")
                cache.get_many([key, "absent"])
                if turn % 20 == 0:
                    time.sleep(0.002)
        except BaseException as error:  # noqa: BLE001
            errors.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield errors
    finally:
        stop.set()
        for thread in threads:
            thread.join(READY)


def clients(url: str, instance_id: str) -> dict[str, int]:
    """Return the connections of an instance: names by id."""
    with redis.Redis.from_url(url) as plain:
        found = plain.client_list()
    return {client["id"]: client["name"] for client in found if instance_id in client["name"]}


def sockets() -> set[str]:
    """Return what this process has open to other processes: the kernel's names of its TCP sockets."""
    tcp = {line.split()[9] for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]}
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            name = str(descriptor.readlink())
        except FileNotFoundError:
            continue
        if name.startswith("socket:[") and name[8:-1] in tcp:
            found.add(name)
    return found


def use(cache: CoherentCache) -> dict[str, Any]:
    """Use a cache in a child, and tell what it was like at first and became."""
    before = {"id": cache.instance_id, "size": cache.stats().size, "hits": cache.stats().hits, "state": cache.state}
    assert cache.get(KEYS[0]) == "old"
    assert cache.wait_ready(READY)
    assert cache.warm(KEYS) == len(KEYS)
    assert cache.get_entry(KEYS[0]).tier == "local"
    cache.set(f"of-{os.getpid()}", os.getpid())
    return before


def prepare(url: str, options: dict[str, Any]) -> CoherentCache:
    cache = CoherentCache(url, **options)
    assert cache.wait_ready(READY)
    cache.set_many(dict.fromkeys(KEYS, "old"))
    assert cache.warm(KEYS) == len(KEYS)
    return cache


@worker
def fork_by_hand(context: Context, *, url: str, options: dict[str, Any]) -> dict[str, Any]:
    """Fork while other threads read and write; then both sides go on, each with the other's changes."""
    with prepare(url, options) as cache:
        own = clients(url, cache.instance_id)
        subscriber = [identity for identity, name in own.items() if name.endswith(":subscriber")]
        changed_here, seen_there = os.pipe(), os.pipe()

        def child() -> dict[str, Any]:
            facts = use(cache)
            facts["inherited"] = sorted(sockets() & parents_sockets)
            facts["clients"] = sorted(clients(url, cache.instance_id).values())
            os.write(seen_there[1], b"x")
            os.read(changed_here[0], 1)
            wait_until(lambda: cache.get(KEYS[0]) == "new", READY, "the child hears of the parent's write")
            return facts

        with busy_threads(cache, 4) as errors:
            parents_sockets = sockets()
            forked = Child(child)
            os.read(seen_there[0], 1)
            cache.set(KEYS[0], "new")
            os.write(changed_here[1], b"x")
            facts = forked.result()
            wait_until(lambda: not clients(url, facts["id"]), READY, "the child's connections end with it")
            own_write = cache.get(f"of-{forked.pid}")
        wait_until(lambda: cache.state == "coherent", READY, "the parent is coherent")
        stats = cache.stats()
        still = clients(url, cache.instance_id)
        return {
            "child": facts,
            "parent": cache.instance_id,
            "errors": errors,
            "child's write": own_write == forked.pid,
            "same subscriber": [identity for identity in still if identity in subscriber] == subscriber,
            "resyncs": stats.resyncs,
            "flushes": stats.flushes,
        }


@worker
def fork_many(context: Context, *, url: str, options: dict[str, Any], forks: int, threads: int) -> dict[str, Any]:
    """Fork again and again out of many threads; no child may wait for a lock that nobody will open."""
    with prepare(url, options) as cache:

        def child() -> str:
            cache.set("child", os.getpid())
            assert cache.get(KEYS[1]) == "old"
            assert cache.wait_ready(READY)
            assert cache.warm(KEYS) == len(KEYS)
            cache.close()
            return cache.instance_id

        with busy_threads(cache, threads) as errors:
            names = [Child(child).result() for _ in range(forks)]
        return {"children": len(set(names)), "errors": errors, "resyncs": cache.stats().resyncs}


def locks_of(cache: CoherentCache) -> list[tuple[str, Any]]:
    """Return every lock of a cache with the classes that lead there: of all that its objects refer to."""
    kinds = (type(threading.Lock()), type(threading.RLock()))
    inside = (threading.Condition, threading.Event, dict, list, tuple, set, partial, MethodType)
    found: list[tuple[str, Any]] = []
    seen, left = set(), [("", cache)]
    while left:
        name, each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, kinds):
            found.append((name, each))
        elif isinstance(each, inside) or type(each).__module__.startswith("coherent_cache"):
            left += [(f"{name}/{type(each).__name__}", other) for other in gc.get_referents(each)]
    return found


@worker
def fork_while_locks_are_held(context: Context, *, url: str, options: dict[str, Any]) -> dict[str, Any]:
    """Fork once for each lock, while another thread holds it; the child then uses whatever needs a lock."""
    with prepare(url, options) as cache:

        def child() -> str:
            use(cache)
            assert cache.get_or_set("loaded", lambda: "value") == "value"
            cache.on_event(lambda _event: None)
            cache.clear_local()
            cache.close()
            return cache.instance_id

        locks = locks_of(cache)
        names = []
        for _, lock in locks:
            held, forked = threading.Event(), threading.Event()

            def hold(lock: Any = lock, held: threading.Event = held, forked: threading.Event = forked) -> None:
                with lock:
                    held.set()
                    forked.wait(CHILD)

            holder = threading.Thread(target=hold)
            holder.start()
            held.wait(READY)
            child_process = Child(child)
            forked.set()
            holder.join()
            names.append(child_process.result())
        return {"locks": sorted(name for name, _ in locks), "children": len(set(names))}


async def use_on_loop(cache: AsyncCoherentCache) -> dict[str, Any]:
    """Use a cache on a loop of a child, and tell what it was like at first; as :func:`use`."""
    before = {"id": cache.instance_id, "size": cache.stats().size, "state": cache.state}
    assert await cache.get(KEYS[0]) == "old"
    assert await cache.wait_ready(READY)
    assert await cache.warm(KEYS) == len(KEYS)
    await cache.set("of the child", cache.instance_id)
    assert await cache.get_or_set("loaded", lambda: "value") == "value"
    return before


@worker
def fork_under_a_loop(context: Context, *, url: str, options: dict[str, Any]) -> dict[str, Any]:
    """Fork while tasks of an event loop read and write; the child uses the cache on a loop of its own."""

    async def busy(cache: AsyncCoherentCache, number: int) -> None:
        for turn in itertools.count():
            key = KEYS[(turn * 7 + number) % len(KEYS)]
            if turn % 5 == 0:
                await cache.set(f"busy-{key}", turn)
            await cache.get_many([key, "absent"])
            await asyncio.sleep(0)

    async def parent() -> dict[str, Any]:
        async with AsyncCoherentCache(url, **options) as cache:
            assert await cache.wait_ready(READY)
            await cache.set_many(dict.fromkeys(KEYS, "old"))
            assert await cache.warm(KEYS) == len(KEYS)
            tasks = [asyncio.create_task(busy(cache, number)) for number in range(4)]
            facts = []
            for _ in range(5):
                await cache.get("absent")  # there is a connection, with commands under way
                parents_sockets, parents_clients = sockets(), clients(url, cache.instance_id)

                def child(parents_sockets: set[str] = parents_sockets) -> dict[str, Any]:
                    facts = asyncio.run(use_on_loop(cache))
                    gc.collect()  # what is left of the parent's objects goes without doing harm
                    return facts | {"inherited": sorted(sockets() & parents_sockets)}

                forked = Child(child)
                facts.append(await asyncio.to_thread(forked.result))
                assert await cache.get("of the child", max_staleness=0) == facts[-1]["id"]
                same = clients(url, cache.instance_id) == parents_clients
            errors = [repr(task.exception()) for task in tasks if task.done()]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            return {"facts": facts, "errors": errors, "same connections": same, "resyncs": cache.stats().resyncs}

    return asyncio.run(parent())


@worker
def fork_twice(context: Context, *, url: str, options: dict[str, Any]) -> list[str]:
    """Fork in a forked child."""
    with prepare(url, options) as cache:

        def child() -> list[str]:
            def grandchild() -> list[str]:
                assert use(cache)["size"] == 0
                cache.set(KEYS[1], "of the grandchild")
                return [cache.instance_id]

            assert use(cache)["size"] == 0
            names = [cache.instance_id, *Child(grandchild).result()]
            wait_until(lambda: cache.get(KEYS[1]) == "of the grandchild", READY, "the child hears of it")
            return names

        names = [cache.instance_id, *Child(child).result()]
        wait_until(lambda: cache.get(KEYS[1]) == "of the grandchild", READY, "the parent hears of it")
        wait_until(lambda: not clients(url, names[1]) and not clients(url, names[2]), READY, "their connections end")
        return names


@worker
def fork_before_use(context: Context, *, url: str, options: dict[str, Any]) -> dict[str, Any]:
    """Fork before anything is connected or started, as servers do that load the application first."""
    with CoherentCache(url, **options) as other:
        other.set_many(dict.fromkeys(KEYS, "old"))
    with CoherentCache(url, **options) as cache:
        nothing = clients(url, cache.instance_id)
        children = [Child(lambda: use(cache)) for _ in range(3)]
        answers = [child.result() for child in children]
        parent = use(cache)
        return {"before": nothing, "names": [parent["id"], *(answer["id"] for answer in answers)]}


@worker
def fork_and_wait(context: Context, *, url: str, options: dict[str, Any], folder: str) -> None:
    """Fork a child that lives on, and wait to be killed."""
    cache = prepare(url, options)
    context.emit(parent=cache.instance_id)

    def child() -> None:
        use(cache)
        (Path(folder) / "ready").touch()
        wait_until((Path(folder) / "killed").exists, CHILD, "the parent is killed")
        assert cache.get(KEYS[0]) == "old"
        cache.set("child", cache.instance_id)
        assert cache.state == "coherent"
        cache.close()
        (Path(folder) / "done").touch()

    Child(child).result()


@worker
def fork_inside_an_operation(context: Context, *, url: str, options: dict[str, Any]) -> dict[str, Any]:
    """Fork in the middle of ``update``, and come back from there in both processes."""
    with prepare(url, options) as cache:
        reading, writing = os.pipe()
        children: list[int] = []

        def change(value: Any) -> str:
            pid = os.fork()
            if pid:
                children.append(pid)
            else:
                signal.alarm(int(CHILD))
            return "changed"

        try:
            cache.update(KEYS[0], change)
        except CoherentCacheError as error:
            # The child: the operation was the parent's. Another one is its own.
            assert not children
            answer = {"error": type(error).__name__, "maybe_applied": getattr(error, "maybe_applied", None)}
            answer["afterwards"] = use_after_parent(cache)
            os.write(writing, json.dumps(answer).encode())
            os._exit(0)
        if not children:
            os.write(writing, b'{"error": null}')
            os._exit(0)
        os.close(writing)
        answer = json.loads(os.read(reading, 65536))
        os.waitpid(children[0], 0)
        assert cache.get(KEYS[0]) == "changed"
        assert cache.get(KEYS[1]) == "old"
        return {"child": answer, "resyncs": cache.stats().resyncs}


def use_after_parent(cache: CoherentCache) -> str:
    wait_until(lambda: cache.get(KEYS[0]) == "changed", READY, "the parent has changed it")
    cache.set("child", 1)
    return str(cache.get("child"))


# -- multiprocessing ---------------------------------------------------------------------------------------------------

_inherited: CoherentCache | None = None


def _child_of_multiprocessing(url: str, options: dict[str, Any], answer: Any) -> None:
    cache = _inherited or CoherentCache(url, **options)
    answer.send(use(cache))
    answer.close()
    # No close(): what ends a process has to end its connections.


@worker
def use_multiprocessing(context: Context, *, url: str, options: dict[str, Any], method: str) -> dict[str, Any]:
    """Start children with ``multiprocessing``; forked ones use the parent's object."""
    global _inherited  # noqa: PLW0603
    starter = multiprocessing.get_context(method)
    with prepare(url, options) as cache, busy_threads(cache, 2) as errors:
        _inherited = cache if method == "fork" else None
        children, answers = [], []
        for _ in range(2):
            here, there = starter.Pipe(duplex=False)
            child = starter.Process(target=_child_of_multiprocessing, args=(url, options, there))
            child.start()
            there.close()
            children.append(child)
            answers.append(here)
        facts = [answer.recv() for answer in answers]
        for child in children:
            child.join(CHILD)
        for fact in facts:
            wait_until(lambda fact=fact: not clients(url, fact["id"]), READY, "the child's connections end")
        seen = [cache.get(f"of-{child.pid}") == child.pid for child in children]
        return {
            "children": facts,
            "exit codes": [child.exitcode for child in children],
            "seen": seen,
            "errors": list(errors),
            "parent": cache.instance_id,
            "resyncs": cache.stats().resyncs,
        }
