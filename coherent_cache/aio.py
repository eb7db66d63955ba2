"""The asyncio front: runs the core's operations on event loops, with the local hit inlined."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Unpack, cast, overload

from coherent_cache import config
from coherent_cache.async_observing import AsyncObserving
from coherent_cache.batch import AsyncBatch
from coherent_cache.config import Settings
from coherent_cache.core.acknowledging import Acknowledgement
from coherent_cache.core.entries import Entry
from coherent_cache.core.leasing import Result
from coherent_cache.core.load_options import LoadContext, with_context
from coherent_cache.core.operations import MISSING, Missing
from coherent_cache.core.requests import Operation, T
from coherent_cache.defaults import DEFAULT, Default
from coherent_cache.front import CacheEntry, several
from coherent_cache.loading_front import OF_LOADS, GetOrSetKeywords, LoadingFront, LoadKeywords, LoadResult
from coherent_cache.loop_runtime import LoopRuntime
from coherent_cache.memoize import AsyncCached, CachedKeywords, Key, P, R, Tags, is_coroutine_function
from coherent_cache.remote.topology import Endpoint
from coherent_cache.runtime import Runtime, RuntimeHolder, clock
from coherent_cache.serializers import Codec
from coherent_cache.versions import Version
from coherent_cache.wire import Kind

if TYPE_CHECKING:
    from coherent_cache.cache import CoherentCache


class AsyncCoherentCache(LoadingFront, AsyncObserving):
    """:class:`CoherentCache` for asyncio: the same contract, the same options, and each operation as a coroutine.

    A local hit neither suspends the task nor makes another one. What goes to Redis goes over one connection per event
    loop, for all its tasks; no limit of connections makes them wait. The thread that hears invalidations is the same
    as for threads.

    A task may be cancelled wherever it waits, and nothing of it is left behind; a write that was under way may have
    happened. Several event loops may use one instance, each has a connection of its own, which ends with the loop
    (``asyncio.run``) or with :meth:`close`. A forked child begins anew, with a loop of its own.

    Of an instance for threads, ``cache.aio`` is this front on the same local tier.
    """

    @staticmethod
    def sharing(cache: CoherentCache) -> AsyncCoherentCache:
        """Return ``cache.aio``: the front for asyncio on the core of an instance for threads."""
        return cache.aio

    def _share(self, holder: RuntimeHolder, settings: Settings, codec: Codec, endpoint: Endpoint) -> None:
        endpoint.check_asynchronous()
        super()._share(holder, settings, codec, endpoint)

    def _adopt(self, runtime: Runtime) -> None:
        super()._adopt(runtime)
        self._loops: dict[asyncio.AbstractEventLoop, LoopRuntime] = {}

    # -- reading ---------------------------------------------------------------------------------------------------

    async def get(
        self,
        key: str,
        default: Any = None,
        max_staleness: float | None = None,
        min_version: Version | None = None,
    ) -> Any:
        """See :meth:`CoherentCache.get`."""
        # As there: a change here is a change there.
        if max_staleness is min_version:  # type: ignore[comparison-overlap]
            # P4: the horizon first, then the clock, then the look-up; one tier object throughout.
            tier = self._shard.tier
            if tier.valid_until >= (now := clock()):
                try:
                    entry = tier.entries[key]
                except (KeyError, TypeError):
                    pass
                else:
                    if now < entry.deadline:
                        tier.ticks = entry.used = tier.ticks + 1
                        return entry.value
                    if now < entry.coded_deadline:
                        tier.ticks = entry.used = tier.ticks + 1
                        return self._decode(entry.value)
        found = self._fresh_entry(key, max_staleness, min_version)
        if found is not None:
            return self._value(found)
        return await self._run(self._read_value(key, default, min_version))

    async def get_entry(self, key: str) -> CacheEntry | None:
        """See :meth:`CoherentCache.get_entry`."""
        return self._local_cache_entry(key) or await self._run(self._read_entry(key))

    async def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """See :meth:`CoherentCache.get_many`."""
        found, missing = self._look_up(several(keys))
        if missing:
            found |= await self._run(self._read_many(missing))
        return found

    async def warm(self, keys: Iterable[str]) -> int:
        """See :meth:`CoherentCache.warm`."""
        wanted = self._to_warm(keys)
        await self.wait_ready(self._settings.timeout)
        await self.get_many(wanted)
        return self._held(wanted)

    # -- loading ---------------------------------------------------------------------------------------------------

    async def get_or_set(self, key: str, loader: Callable[..., Any], **options: Unpack[GetOrSetKeywords]) -> Any:
        """See :meth:`CoherentCache.get_or_set`.

        ``loader`` is a coroutine function, or a plain one, which is called in a thread (that of ``asyncio.to_thread``)
        and may return what is to be awaited, here. If the caller is cancelled while it loads, so is the loader, and one
        of those who wait takes over; a plain loader goes on in its thread, and what it returns is dropped.
        """
        if not options or options.keys() <= OF_LOADS:
            # As in `get`: the horizon first, then the clock, then the look-up (P4).
            tier = self._shard.tier
            if tier.valid_until >= (now := clock()):
                try:
                    entry = tier.entries[key]
                except (KeyError, TypeError):
                    pass
                else:
                    if now < entry.deadline:
                        tier.ticks = entry.used = tier.ticks + 1
                        return entry.value
                    if now < entry.coded_deadline:
                        tier.ticks = entry.used = tier.ticks + 1
                        return self._decode(entry.value)
        default = options.pop("default", None)
        wish = self._wish(key, loader, options)
        found: Entry | Result | None = self._here(wish)
        if found is None:
            found = await self._run(self._load(wish))
        return self._loaded_value(found, default)

    async def get_or_set_entry(
        self, key: str, loader: Callable[..., Any], **options: Unpack[LoadKeywords]
    ) -> LoadResult:
        """See :meth:`CoherentCache.get_or_set_entry` and :meth:`get_or_set`."""
        self._shard_of(key)  # checks the key
        return await self._run(self._load_entry(self._wish(key, loader, options)))

    async def get_or_set_many(
        self,
        keys: Iterable[str],
        loader: Callable[[list[str]], Any],
        *,
        ttl: float | Default | None = DEFAULT,
        tags: Iterable[str] = (),
        jitter: float | None = None,
        negative_ttl: float | None = None,
    ) -> dict[str, Any]:
        """See :meth:`CoherentCache.get_or_set_many` and :meth:`get_or_set`."""
        options = self._options_of_many(loader, ttl, tags, jitter, negative_ttl)
        wanted = several(keys)
        found, missing = self._look_up(wanted)
        if missing:
            found |= await self._run(self._load_many(missing, _on_loop(loader, loader), options))
        return {key: found[key] for key in wanted if found.get(key, MISSING) is not MISSING}

    # -- writing ---------------------------------------------------------------------------------------------------

    @overload
    async def set(
        self,
        key: str,
        value: Any,
        *,
        ttl: float | Default | None = DEFAULT,
        tags: Iterable[str] = (),
        if_version: Version | Missing | None = None,
        wait: None = None,
    ) -> Version: ...

    @overload
    async def set(
        self,
        key: str,
        value: Any,
        *,
        ttl: float | Default | None = DEFAULT,
        tags: Iterable[str] = (),
        if_version: Version | Missing | None = None,
        wait: float,
    ) -> Acknowledgement: ...

    async def set(
        self,
        key: str,
        value: Any,
        *,
        ttl: float | Default | None = DEFAULT,
        tags: Iterable[str] = (),
        if_version: Version | Missing | None = None,
        wait: float | None = None,
    ) -> Version | Acknowledgement:
        """See :meth:`CoherentCache.set`."""
        result: Version | Acknowledgement = await self._run(self._set(key, value, ttl, tags, if_version, wait))
        return result

    async def set_many(
        self, mapping: Mapping[str, Any], *, ttl: float | Default | None = DEFAULT, tags: Iterable[str] = ()
    ) -> dict[str, Version]:
        """See :meth:`CoherentCache.set_many`."""
        return await self._run(self._set_many(mapping, ttl, tags))

    @overload
    async def delete(self, key: str, *, if_version: Version | None = None, wait: None = None) -> bool: ...

    @overload
    async def delete(self, key: str, *, if_version: Version | None = None, wait: float) -> Acknowledgement: ...

    async def delete(
        self, key: str, *, if_version: Version | None = None, wait: float | None = None
    ) -> bool | Acknowledgement:
        """See :meth:`CoherentCache.delete`."""
        result: bool | Acknowledgement = await self._run(self._delete(key, if_version, wait))
        return result

    async def delete_many(self, keys: Iterable[str]) -> int:
        """See :meth:`CoherentCache.delete_many`."""
        return await self._run(self._delete_many(keys))

    def batch(self) -> AsyncBatch:
        """See :meth:`CoherentCache.batch`; here it is ``async with cache.batch() as b``."""
        return AsyncBatch(lambda: self._runtime, self._run)

    async def touch(self, key: str, ttl: float | Default | None = DEFAULT) -> bool:
        """See :meth:`CoherentCache.touch`."""
        return await self._run(self._touch(key, ttl))

    async def update(
        self,
        key: str,
        fn: Callable[[Any], Any],
        *,
        default: Any = None,
        ttl: float | Default | None = DEFAULT,
        tags: Iterable[str] = (),
    ) -> Any:
        """See :meth:`CoherentCache.update`.

        ``fn`` is called on the event loop, so it should be quick; or it is a coroutine function.
        """
        return await self._run(self._update(key, fn, default, ttl, tags))

    @overload
    async def clear(self, *, wait: None = None) -> Version: ...

    @overload
    async def clear(self, *, wait: float) -> Acknowledgement: ...

    async def clear(self, *, wait: float | None = None) -> Version | Acknowledgement:
        """See :meth:`CoherentCache.clear`."""
        result: Version | Acknowledgement = await self._run(self._raise_floor(Kind.CLEAR, (), wait))
        return result

    @overload
    async def invalidate_tags(self, *tags: str, wait: None = None) -> Version: ...

    @overload
    async def invalidate_tags(self, *tags: str, wait: float) -> Acknowledgement: ...

    async def invalidate_tags(self, *tags: str, wait: float | None = None) -> Version | Acknowledgement:
        """See :meth:`CoherentCache.invalidate_tags`."""
        result: Version | Acknowledgement = await self._run(self._raise_floor(Kind.TAG, tags, wait))
        return result

    # -- as a decorator --------------------------------------------------------------------------------------------

    def cached(
        self, *, key: Key = None, tags: Tags = (), ignore: Iterable[str] = (), **options: Unpack[CachedKeywords]
    ) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], AsyncCached[P, R]]:
        """See :meth:`CoherentCache.cached`; here it decorates coroutine functions."""
        self._options(cast("LoadKeywords", options))
        return lambda function: AsyncCached(self, function, key=key, tags=tags, ignore=ignore, options=options)

    # -- as a mapping ----------------------------------------------------------------------------------------------

    def __contains__(self, key: object) -> NoReturn:
        raise TypeError("'in' cannot be awaited: use await cache.get(key, MISSING) is not MISSING")

    def __getitem__(self, key: object) -> NoReturn:
        raise TypeError("cache[key] cannot be awaited: use await cache.get(key)")

    def __setitem__(self, key: object, value: object) -> NoReturn:
        raise TypeError("cache[key] = value cannot be awaited: use await cache.set(key, value)")

    def __delitem__(self, key: object) -> NoReturn:
        raise TypeError("del cache[key] cannot be awaited: use await cache.delete(key)")

    # -- this instance ---------------------------------------------------------------------------------------------

    async def wait_ready(self, timeout: float = config.DEFAULT_MAX_STALENESS) -> bool:  # noqa: ASYNC109  # as there
        """See :meth:`CoherentCache.wait_ready`."""
        return await self._on_loop().wait(self._is_coherent, timeout)

    async def close(self) -> None:
        """Stop the thread and close the connections; later calls that need Redis raise. Idempotent.

        That closes what is shared: the front for threads as well, and the connections of other event loops. Loads in
        the background of this loop are waited for, ``timeout`` seconds at most.
        """
        loop = asyncio.get_running_loop()
        if loop in self._loops:
            await self._loops[loop].close_all()
        else:
            await asyncio.to_thread(self._runtime.close)

    async def __aenter__(self) -> AsyncCoherentCache:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    # -- inside ----------------------------------------------------------------------------------------------------

    async def _run(self, operation: Operation[T]) -> T:
        return await self._on_loop().run(operation)

    def _on_loop(self) -> LoopRuntime:
        """Return what there is for the running event loop."""
        loop = asyncio.get_running_loop()
        found = self._loops.get(loop)
        if found is None or found.ended:
            for other, runtime in list(self._loops.items()):
                if runtime.ended:
                    self._loops.pop(other, None)
                    runtime.leave()
            found = self._loops[loop] = LoopRuntime(self._runtime)
        return found

    def _spawn(self, operation: Operation[Any]) -> bool:
        return self._on_loop().spawn(operation)

    def _home(self) -> object:
        return asyncio.get_running_loop()

    def _loader(self, loader: Callable[..., Any]) -> Callable[[LoadContext], Any]:
        return _on_loop(loader, with_context(loader))


def _on_loop(loader: Callable[..., Any], call: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return what calls a loader so that it does not block the event loop; the result is to be awaited."""
    return call if is_coroutine_function(loader) else partial(_in_thread, call)


async def _in_thread(call: Callable[[Any], Any], argument: Any) -> Any:
    result = await asyncio.to_thread(call, argument)
    return await result if inspect.isawaitable(result) else result
