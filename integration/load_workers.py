"""Workers that load: many threads ask for one key, and what a loader does is counted in Redis."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import redis

from coherent_cache import CoherentCache
from integration.fork_workers import Child
from integration.waiting import wait_until
from integration.workers import worker

if TYPE_CHECKING:
    from integration.workers import Context

PATIENCE = 30.0


@worker
def stampede(
    context: Context, *, url: str, options: dict[str, Any], threads: int, seconds: float, ready: bool
) -> dict[str, Any]:
    """Ask for one cold key in many threads at once; return what they got and how often this process loaded."""
    plain = redis.Redis.from_url(url)
    with plain, CoherentCache(url, **options) as cache:
        if ready:
            assert cache.wait_ready(PATIENCE)

        def loader() -> dict[str, Any]:
            number = plain.incr("loads")
            time.sleep(seconds)
            return {"load": number, "by": context.index}

        got: list[Any] = []
        together = threading.Barrier(threads + 1)

        def ask() -> None:
            together.wait(PATIENCE)
            got.append(cache.get_or_set("key", loader))

        running = [threading.Thread(target=ask) for _ in range(threads)]
        for thread in running:
            thread.start()
        plain.incr("ready")
        wait_until(lambda: int(plain.get("ready") or 0) == context.count, PATIENCE, "all processes are ready")
        together.wait(PATIENCE)
        for thread in running:
            thread.join(PATIENCE)
        return {"got": got, "loads": cache.stats().loads, "flights": len(cache._runtime.instance.flights)}


@worker
def load_for_ever(context: Context, *, url: str, options: dict[str, Any]) -> None:
    """Begin a load that never ends."""
    with CoherentCache(url, **options) as cache:
        assert cache.wait_ready(PATIENCE)

        def loader() -> None:
            context.emit(loading=True)
            time.sleep(3600)

        cache.get_or_set("key", loader)


@worker
def load_slowly(context: Context, *, url: str, options: dict[str, Any], seconds: float) -> None:
    """Load a key, and tell when the loader runs."""
    with CoherentCache(url, **options) as cache:
        assert cache.wait_ready(PATIENCE)

        def loader() -> str:
            context.emit(loading=True)
            time.sleep(seconds)
            return "loaded slowly"

        return cache.get_or_set("key", loader)


@worker
def wait_for_a_load(context: Context, *, url: str, options: dict[str, Any]) -> dict[str, Any]:
    """Ask for a key that another process loads; return what came of it, and after how many seconds."""
    with redis.Redis.from_url(url) as plain, CoherentCache(url, **options) as cache:
        assert cache.wait_ready(PATIENCE)
        context.emit(asking=True)
        value = cache.get_or_set("key", lambda: f"load {plain.incr('loads')}")
        return {"value": value, "at": time.time()}


@worker
def fork_during_a_load(context: Context, *, url: str, options: dict[str, Any]) -> dict[str, Any]:
    """Fork while another thread loads; the child asks for the same key, and then for another one."""
    with CoherentCache(url, **options) as cache:
        assert cache.wait_ready(PATIENCE)
        begun, go_on, got = threading.Event(), threading.Event(), []

        def loader() -> str:
            begun.set()
            assert go_on.wait(PATIENCE)
            return "the parent's"

        loading = threading.Thread(target=lambda: got.append(cache.get_or_set("key", loader)))
        loading.start()
        assert begun.wait(PATIENCE)

        def in_child() -> dict[str, Any]:
            own = cache.get_or_set("other", lambda: "the child's")
            context.emit(waits=True)
            waited = cache.get_or_set("key", lambda: "loaded twice")
            told = {"own": own, "waited": waited, "loads": cache.stats().loads}
            cache.close()
            return told

        child = Child(in_child)
        wait_until(lambda: cache.get("other") is not None, PATIENCE, "the child has loaded")
        go_on.set()
        told = child.result()
        loading.join(PATIENCE)
        return {"child": told, "parent": got, "loads": cache.stats().loads, "other": cache.get("other")}
