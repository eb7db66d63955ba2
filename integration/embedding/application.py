"""A small application with a cache: for WSGI servers, and for ASGI servers by threads."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from coherent_cache import CoherentCache
from coherent_cache.errors import CoherentCacheError
from integration.embedding.answers import describe, describe_error, encode, serve
from integration.embedding.configuration import READY, USED_BEFORE, Configuration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from integration.embedding.answers import Message, Receive, Send

configuration = Configuration.of_environment()
cache = CoherentCache(configuration.url, **configuration.options)

if configuration.use_at_import:
    assert cache.wait_ready(READY)
    cache.set(USED_BEFORE, os.getpid())
    assert cache.warm([USED_BEFORE]) == 1


def read(key: str) -> dict[str, Any]:
    """Return what the cache has for a key."""
    return describe(cache.get_entry(key))


def write(key: str, value: str, wait: str = "") -> dict[str, Any]:
    """Store a value; with ``wait`` acknowledged."""
    if not wait:
        return {"seq": cache.set(key, value).seq}
    acknowledgement = cache.set(key, value, wait=float(wait))
    return {"seq": acknowledgement.version.seq, "by": acknowledgement.by}


def load(key: str) -> dict[str, Any]:
    """Return a value that the first process to ask has made."""
    return {"value": cache.get_or_set(key, os.getpid)}


def who() -> dict[str, Any]:
    """Tell of the process and its instance."""
    return {"parent": os.getppid(), "size": cache.stats().size, "state": cache.state, "ready": cache.wait_ready(READY)}


ROUTES: dict[tuple[str, str], Callable[..., dict[str, Any]]] = {
    ("GET", "/read"): read,
    ("POST", "/write"): write,
    ("GET", "/load"): load,
    ("GET", "/who"): who,
}


def answer(method: str, path: str, query: str) -> tuple[int, bytes]:
    """Answer a request: its status and body. A cache that cannot do it is a 503."""
    status = 200
    try:
        told = ROUTES[method, path](**dict(parse_qsl(query)))
    except CoherentCacheError as error:
        status, told = 503, describe_error(error)
    return status, encode(cache.instance_id, told)


def wsgi(environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]) -> Iterable[bytes]:
    """The application for gunicorn."""
    status, body = answer(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"])
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response(f"{status} {'OK' if status == 200 else 'Service Unavailable'}", headers)
    return [body]


async def asgi(scope: Message, receive: Receive, send: Send) -> None:
    """The application for uvicorn: the synchronous cache in threads, as frameworks do it for plain functions."""

    async def in_thread(method: str, path: str, query: str) -> tuple[int, bytes]:
        return await asyncio.to_thread(answer, method, path, query)

    async def close() -> None:
        if configuration.close:
            await asyncio.to_thread(cache.close)

    await serve(scope, receive, send, answer=in_thread, close=close)
