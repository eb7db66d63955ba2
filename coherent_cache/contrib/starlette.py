"""Starlette: a lifespan that makes an application's cache and closes it, and what finds it in a request.

::

    app = Starlette(
        routes=[...],
        lifespan=cache_lifespan(lambda: AsyncCoherentCache("redis://localhost:6379/0", namespace="shop")),
    )

    async def user(request):
        cache = get_cache(request)
        ...
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Final

from coherent_cache import AsyncCoherentCache, CoherentCache, ConfigError
from coherent_cache.config import DEFAULT_MAX_STALENESS, check_seconds
from coherent_cache.contrib.extras import missing_extra

try:
    from starlette.requests import HTTPConnection
except ModuleNotFoundError as error:
    raise missing_extra("starlette", error) from error

STATE: Final = "coherent_cache"
"""Where the cache is in the state of an application and of its requests."""

Cache = CoherentCache | AsyncCoherentCache
Lifespan = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any] | None]]


def cache_lifespan(
    source: Cache | Callable[[], Cache], inner: Lifespan | None = None, *, ready: float | None = DEFAULT_MAX_STALENESS
) -> Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any]]]:
    """Return a lifespan for ``Starlette(lifespan=...)`` or ``FastAPI(lifespan=...)``.

    The cache is closed when the application ends, after ``inner`` has ended. A function makes a new one at each start,
    so the application can be started again, as tests do; it is called in the worker's process.

    Args:
        source: a cache, or a function that makes one. Of a :class:`CoherentCache`, coroutines get ``.aio``, and
            functions that run in threads can have the cache itself: :func:`get_sync_cache`.
        inner: another lifespan to run inside; the states of both are joined.
        ready: seconds to wait at the start, at most, until the cache is coherent, so that a worker that begins to serve
            does so from its local tier. It starts in any case; None does not wait.

    Raises:
        ConfigError: ``source`` or ``ready`` cannot be.
        NamespaceMismatch: at the start: the namespace was created with other settings.
    """
    if not isinstance(source, Cache) and not callable(source):
        raise ConfigError("source", f"must be a cache, or a function that makes one, not {type(source).__name__}")
    check_seconds("ready", ready)

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[Mapping[str, Any]]:
        cache = source if isinstance(source, Cache) else source()
        if not isinstance(cache, Cache):
            raise ConfigError("source", f"must return a cache, not {type(cache).__name__}")
        async with AsyncExitStack() as stack:
            front = await stack.enter_async_context(cache.aio if isinstance(cache, CoherentCache) else cache)
            if ready is not None:
                await front.wait_ready(ready)
            more = None if inner is None else await stack.enter_async_context(inner(app))
            yield {**(more or {}), STATE: cache}

    return lifespan


def get_cache(connection: HTTPConnection) -> AsyncCoherentCache:
    """Return the cache of the application that serves a request or a websocket, for coroutines.

    Raises:
        ConfigError: the application was not given a ``cache_lifespan``, or was not started.
    """
    cache = _cache_of(connection)
    return cache.aio if isinstance(cache, CoherentCache) else cache


def get_sync_cache(connection: HTTPConnection) -> CoherentCache:
    """As :func:`get_cache`, for plain functions, which run in threads.

    Raises:
        ConfigError: as there, or the lifespan was given an ``AsyncCoherentCache``, which is for coroutines alone.
    """
    cache = _cache_of(connection)
    if not isinstance(cache, CoherentCache):
        raise ConfigError("source", "give cache_lifespan a CoherentCache; coroutines then get its front for asyncio")
    return cache


def _cache_of(connection: HTTPConnection) -> Cache:
    cache = connection.scope.get("state", {}).get(STATE)
    if not isinstance(cache, Cache):
        raise ConfigError(
            "lifespan", "the application has no cache: give it lifespan=cache_lifespan(...), and start it"
        )
    return cache
