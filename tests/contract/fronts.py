"""Both fronts behind plain calls, so that one text tests both."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager

from coherent_cache import AsyncCoherentCache, CoherentCache
from integration.blocking import BlockingCache, LoopThread, io_of


class Sync:
    """The front for threads."""

    def __call__(self, url, **options):
        return CoherentCache(url, **options)

    def stop(self):
        """Do nothing: nothing runs."""


class Asynchronous:
    """The front for event loops."""

    def __init__(self):
        self._thread = LoopThread()

    def __call__(self, url, **options):
        return BlockingCache(AsyncCoherentCache(url, **options), self._thread)

    def stop(self):
        self._thread.stop()


FRONTS = {"sync": Sync, "async": Asynchronous}


@contextmanager
def messages_wait(cache):
    """Let nothing that is heard reach a cache in the block; what its own operations learn does."""
    lock = cache._shard._lock
    if isinstance(cache, BlockingCache):
        cache.thread.call_plain(lock.acquire)
        yield
        cache.thread.call_plain(lock.release)
    else:
        with lock:
            yield


def after_answers(cache, monkeypatch, action):
    """Have something done between an answer of Redis and what a cache makes of it."""
    io = io_of(cache)
    execute = io.execute

    def plain(requests):
        replies = execute(requests)
        action()
        return replies

    async def coroutine(requests):
        replies = await execute(requests)
        await asyncio.to_thread(action)
        return replies

    monkeypatch.setattr(io, "execute", coroutine if isinstance(cache, BlockingCache) else plain)
