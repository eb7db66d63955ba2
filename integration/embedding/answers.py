"""What the applications answer, and how an ASGI server is told. Every answer is JSON and names process and instance."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coherent_cache import CacheEntry, CoherentCacheError

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def describe(entry: CacheEntry | None) -> dict[str, Any]:
    """Return what there is to say of an entry."""
    if entry is None:
        return {"found": False}
    seq, epoch = entry.version.seq, entry.version.epoch.hex()
    return {
        "found": True, "seq": seq, "epoch": epoch, "value": entry.value, "tier": entry.tier, "age": entry.age_bound,
    }  # fmt: skip


def describe_error(error: CoherentCacheError) -> dict[str, Any]:
    """Return what there is to say of what the cache could not do."""
    return {"error": f"{type(error).__name__}: {error}", "maybe_applied": getattr(error, "maybe_applied", False)}


def encode(instance_id: str, told: dict[str, Any]) -> bytes:
    """Return the body of an answer."""
    return json.dumps({"pid": os.getpid(), "instance": instance_id, **told}).encode()


async def serve(
    scope: Message,
    receive: Receive,
    send: Send,
    *,
    answer: Callable[[str, str, str], Awaitable[tuple[int, bytes]]],
    close: Callable[[], Awaitable[None]],
) -> None:
    """Do what an ASGI server asks for.

    Args:
        scope: what it wants.
        receive: from it.
        send: to it.
        answer: returns status and body for method, path and query.
        close: called at the end of the lifespan.
    """
    await receive()
    if scope["type"] == "lifespan":
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await close()
        await send({"type": "lifespan.shutdown.complete"})
        return
    status, body = await answer(scope["method"], scope["path"], scope["query_string"].decode())
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
