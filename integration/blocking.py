"""The front for event loops behind plain calls, so that one text uses both fronts."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading

from coherent_cache import MISSING

PATIENCE = 60.0


class LoopThread:
    """An event loop that runs in a thread of its own until it is stopped."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="event loop", daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stopping:
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt):  # a task's: asyncio lets them end the loop as well
                continue

    def call(self, coroutine):
        """Run a coroutine on the loop, return what it returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENCE)

    def call_plain(self, function, *args):
        """Call a function in the loop's thread."""

        async def called():
            return function(*args)

        return self.call(called())

    def stop(self):
        """End the loop; nothing may be left on it."""

        async def left():
            return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

        tasks = self.call(left())
        self.call(self.loop.shutdown_asyncgens())
        self.call(self.loop.shutdown_default_executor())
        self._stopping = True
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()
        assert not tasks


class Blocking:
    """An object with coroutines as methods, as one with plain methods."""

    def __init__(self, target, thread):
        vars(self).update(target=target, thread=thread)

    def __getattr__(self, name):
        return _plain(getattr(self.target, name), self.thread)

    def __setattr__(self, name, value):
        setattr(self.target, name, value)

    def __delattr__(self, name):
        vars(self.target).pop(name, None)

    def __repr__(self):
        return repr(self.target)


def _plain(found, thread):
    """Return something as those have it who block."""
    if inspect.iscoroutinefunction(found):
        return lambda *args, **kwargs: thread.call(found(*args, **kwargs))
    return found


class BlockingCache(Blocking):
    """AsyncCoherentCache with plain methods."""

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def __contains__(self, key):
        return self.get(key, MISSING) is not MISSING

    def __getitem__(self, key):
        return self.get(key)

    def batch(self):
        return BlockingBatch(self.target.batch(), self.thread)

    def cached(self, **options):
        decorate = self.target.cached(**options)

        def decorator(function):
            @functools.wraps(function)
            async def coroutine(*args, **kwargs):
                return await asyncio.to_thread(function, *args, **kwargs)  # it may use a cache as well

            return BlockingCached(decorate(coroutine), self.thread)

        return decorator


class BlockingBatch(Blocking):
    """AsyncBatch with plain methods."""

    def __enter__(self):
        self.thread.call(self.target.__aenter__())
        return self

    def __exit__(self, *exc_info):
        self.thread.call(self.target.__aexit__(*exc_info))

    def __len__(self):
        return len(self.target)


class BlockingCached(Blocking):
    """AsyncCached with plain methods."""

    def __call__(self, *args, **kwargs):
        return self.thread.call(self.target(*args, **kwargs))

    def uncached(self, *args, **kwargs):
        return self.thread.call(self.target.uncached(*args, **kwargs))


def io_of(cache):
    """Return what runs a front's requests."""
    if isinstance(cache, BlockingCache):
        return cache.thread.call_plain(cache.target._on_loop)._io
    return cache._runtime._io
