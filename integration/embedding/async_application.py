"""The application for uvicorn with the cache's front for asyncio. It answers as ``application.py`` does."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from coherent_cache import AsyncCoherentCache, CoherentCacheError
from integration.embedding.answers import describe, describe_error, encode, serve
from integration.embedding.configuration import READY, Configuration

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from integration.embedding.answers import Message, Receive, Send

configuration = Configuration.of_environment()
cache = AsyncCoherentCache(configuration.url, **configuration.options)


async def read(key: str) -> dict[str, Any]:
    return describe(await cache.get_entry(key))


async def write(key: str, value: str) -> dict[str, Any]:
    return {"seq": (await cache.set(key, value)).seq}


async def load(key: str) -> dict[str, Any]:
    return {"value": await cache.get_or_set(key, os.getpid)}


async def who() -> dict[str, Any]:
    ready = await cache.wait_ready(READY)
    return {"parent": os.getppid(), "size": cache.stats().size, "state": cache.state, "ready": ready}


ROUTES: dict[tuple[str, str], Callable[..., Awaitable[dict[str, Any]]]] = {
    ("GET", "/read"): read,
    ("POST", "/write"): write,
    ("GET", "/load"): load,
    ("GET", "/who"): who,
}


async def answer(method: str, path: str, query: str) -> tuple[int, bytes]:
    status = 200
    try:
        told = await ROUTES[method, path](**dict(parse_qsl(query)))
    except CoherentCacheError as error:
        status, told = 503, describe_error(error)
    return status, encode(cache.instance_id, told)


async def close() -> None:
    if configuration.close:
        await cache.close()


async def asgi(scope: Message, receive: Receive, send: Send) -> None:
    await serve(scope, receive, send, answer=answer, close=close)
