"""A small application with a cache, for WSGI servers and for ASGI servers.

Every answer is JSON and tells which process and which instance gave it.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from coherent_cache import CoherentCache
from coherent_cache.errors import CoherentCacheError
from integration.embedding.configuration import Configuration

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

READY = 20.0  # seconds until an instance must be coherent
USED_BEFORE = "used-before"  # the key that a process uses when it imports the application, if it is to

configuration = Configuration.of_environment()
cache = CoherentCache(configuration.url, **configuration.options)

if configuration.use_at_import:
    assert cache.wait_ready(READY)
    cache.set(USED_BEFORE, os.getpid())
    assert cache.warm([USED_BEFORE]) == 1


def read(key: str) -> dict[str, Any]:
    """Return what the cache has for a key."""
    entry = cache.get_entry(key)
    if entry is None:
        return {"found": False}
    seq, epoch = entry.version.seq, entry.version.epoch.hex()
    return {
        "found": True, "seq": seq, "epoch": epoch, "value": entry.value, "tier": entry.tier, "age": entry.age_bound,
    }  # fmt: skip


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
        status = 503
        told = {"error": f"{type(error).__name__}: {error}", "maybe_applied": getattr(error, "maybe_applied", False)}
    return status, json.dumps({"pid": os.getpid(), "instance": cache.instance_id, **told}).encode()


def wsgi(environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]) -> Iterable[bytes]:
    """The application for gunicorn."""
    status, body = answer(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"])
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response(f"{status} {'OK' if status == 200 else 'Service Unavailable'}", headers)
    return [body]


Message = dict[str, Any]


async def asgi(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """The application for uvicorn: the synchronous cache in threads, as frameworks do it for plain functions."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if configuration.close:
            await asyncio.to_thread(cache.close)
        await send({"type": "lifespan.shutdown.complete"})
        return
    await receive()
    query = scope["query_string"].decode()
    status, body = await asyncio.to_thread(answer, scope["method"], scope["path"], query)
    await respond(send, status, body)


async def respond(send: Callable[[Message], Awaitable[None]], status: int, body: bytes) -> None:
    """Send an answer."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
