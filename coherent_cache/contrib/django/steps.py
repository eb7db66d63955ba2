"""What each of the backend's methods does, written once for threads and for asyncio.

Each is a generator that asks a front of the cache, for threads or for asyncio, and yields what that returns: a result,
or what is to be awaited. :func:`run` and :func:`arun` send the results back in.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, Final, TypeVar

from coherent_cache import MISSING, AsyncCoherentCache, CoherentCache, VersionConflict

T = TypeVar("T")
Steps = Generator[Any, Any, T]
Front = CoherentCache | AsyncCoherentCache

SHORTEST_TTL: Final = 0.001
"""Seconds: Redis' resolution. A shorter timeout above zero becomes this."""

INCR_ATTEMPTS: Final = 100
"""How often ``incr`` tries before it gives up against faster writers."""


def run(steps: Steps[T]) -> T:
    """Take all steps on the front for threads."""
    try:
        result = next(steps)
        while True:
            result = steps.send(result)
    except StopIteration as stop:
        value: T = stop.value
        return value


async def arun(steps: Steps[T]) -> T:
    """Take all steps on the front for asyncio."""
    try:
        awaited = next(steps)
        while True:
            try:
                result = await awaited
            except BaseException as error:  # noqa: BLE001 - every failure is the steps' to judge
                awaited = steps.throw(error)
            else:
                awaited = steps.send(result)
    except StopIteration as stop:
        value: T = stop.value
        return value


def store(front: Front, key: str, value: Any, ttl: float | None, tags: Iterable[str]) -> Steps[None]:
    """Store a value; with a ttl of 0, delete it."""
    yield front.delete(key) if ttl == 0 else front.set(key, value, ttl=ttl, tags=tags)


def add(front: Front, key: str, value: Any, ttl: float | None, tags: Iterable[str]) -> Steps[bool]:
    """Store a value if there is none; return whether there was none."""
    if ttl == 0:
        return (yield front.get(key, MISSING)) is MISSING
    try:
        yield front.set(key, value, ttl=ttl, tags=tags, if_version=MISSING)
    except VersionConflict:
        return False
    return True


def touch(front: Front, key: str, ttl: float | None) -> Steps[bool]:
    """Give a value another time to live; with a ttl of 0, delete it. Return whether there was one."""
    there: bool = yield front.delete(key) if ttl == 0 else front.touch(key, ttl)
    return there


def store_many(front: Front, values: Mapping[str, Any], ttl: float | None, tags: Iterable[str]) -> Steps[None]:
    """Store values; with a ttl of 0, delete them."""
    yield front.delete_many(values) if ttl == 0 else front.set_many(values, ttl=ttl, tags=tags)


def get_or_set(front: Front, key: str, load: Callable[[], Any], ttl: float | None, tags: Iterable[str]) -> Steps[Any]:
    """Return the value of a key; if there is none, load it. With a ttl of 0 what is loaded is not stored."""
    if ttl == 0:
        value = yield front.get(key, MISSING)
        # A generator can only yield what is to be awaited, so the front for threads gets its result back.
        return (yield load()) if value is MISSING else value
    return (yield front.get_or_set(key, load, ttl=ttl, tags=tags))


def incr(front: Front, key: str, delta: int, tags: Iterable[str]) -> Steps[Any]:
    """Add to a value, by compare-and-set, and keep its time to live; return the new value, MISSING if there is none.

    Raises:
        VersionConflict: other writers were faster each time.
    """
    attempts = 0
    while True:
        entry = yield front.get_entry(key)
        if entry is None:
            return MISSING
        value = entry.value + delta
        try:
            yield front.set(key, value, ttl=at_least(entry.expires_in), tags=tags, if_version=entry.version)
        except VersionConflict:
            # The refusal has evicted a local entry that was older: the next look asks Redis.
            attempts += 1
            if attempts == INCR_ATTEMPTS:
                raise
        else:
            return value


def at_least(ttl: float | None) -> float | None:
    """Return a time to live that Redis can have."""
    return None if ttl is None else max(ttl, SHORTEST_TTL)
