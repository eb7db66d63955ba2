"""Django's cache backend. One :class:`CoherentCache` per configuration and process, however many threads there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pickle import PickleError
from typing import Any, Final, overload

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache

from coherent_cache import (
    MISSING,
    Acknowledgement,
    AsyncCoherentCache,
    CoherentCache,
    ConfigError,
    SerializationError,
    ValueTooLarge,
    Version,
)
from coherent_cache.contrib.django import steps
from coherent_cache.contrib.django.steps import arun, run

DEFAULT_NAMESPACE: Final = "django"
"""The namespace, unless ``OPTIONS`` name another."""

_NOT_HERE: Final = {
    "ttl": "is Django's TIMEOUT",
    "url": "is Django's LOCATION",
    "MAX_ENTRIES": "cannot bound what Redis holds: its maxmemory does; max_entries bounds the local tier",
    "CULL_FREQUENCY": "has no meaning here: Redis and the local tier choose what goes when they are full",
}
"""What ``OPTIONS`` may not contain, and why."""

_HOW_TO_STORE_IT: Final = (
    "Django's own backends pickle every value. This one does so only if OPTIONS has 'serializer': 'pickle', since "
    "whoever can write to that Redis can then execute code here; else it takes plain data and containers of them"
)

_shared: Final[dict[tuple[object, ...], CoherentCache]] = {}
"""The caches of this process, by their configuration. Django makes a backend per thread and asynchronous context."""


class UnpicklableValue(SerializationError, PickleError):
    """A value cannot be pickled: as Django's own backends have it, an error of pickle. Nothing was sent."""


class CoherentCacheBackend(BaseCache):
    """A cache backend whose local hits are coherent with all processes.

    ``LOCATION`` is where Redis is, ``OPTIONS`` are those of :class:`CoherentCache` but ``url`` and ``ttl``; the
    namespace is ``django`` unless they say otherwise. All of Django's other settings mean what they mean to Django.

    Beyond Django's own methods, ``tags=`` gives values tags, and :meth:`invalidate_tags` makes all that carry one
    absent; tags belong to the namespace, whatever prefix and version a key has. The cache itself is
    ``coherent_cache``, with statistics, versions and the rest; its keys are those of ``make_key``.
    """

    def __init__(self, location: str, params: dict[str, Any]) -> None:
        """Find or make the cache of a configuration. Django calls this.

        Raises:
            ConfigError: ``LOCATION`` or one of the ``OPTIONS`` is unusable.
        """
        super().__init__(params)
        options = params.get("OPTIONS", {})
        self._explaining = _Explaining(chosen="serializer" in options)
        # Nothing is locked, so nothing is locked in a forked child either. Of two caches that threads have made at the
        # same time, one is dropped before it has started.
        identity = (location, *sorted(options.items()))
        try:
            cache = _shared.get(identity)
        except TypeError as error:
            raise ConfigError("CACHES", f"LOCATION and OPTIONS must be hashable: {error}") from None
        self.coherent_cache = cache or _shared.setdefault(identity, _make(location, options))

    @property
    def acoherent_cache(self) -> AsyncCoherentCache:
        """The front for asyncio of the same cache: what the asynchronous methods use."""
        return self.coherent_cache.aio

    # -- Django's methods ------------------------------------------------------------------------------------------

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        """Return the value of a key, or ``default``."""
        return self.coherent_cache.get(self.make_and_validate_key(key, version), default)

    async def aget(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        """See :meth:`get`."""
        return await self.acoherent_cache.get(self.make_and_validate_key(key, version), default)

    def set(
        self,
        key: Any,
        value: Any,
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        tags: Iterable[str] = (),
    ) -> None:
        """Store a value; with a timeout of 0 or less, delete it."""
        name, ttl = self.make_and_validate_key(key, version), self._ttl(timeout)
        with self._explaining:
            run(steps.store(self.coherent_cache, name, value, ttl, tags))

    async def aset(
        self,
        key: Any,
        value: Any,
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        tags: Iterable[str] = (),
    ) -> None:
        """See :meth:`set`."""
        name, ttl = self.make_and_validate_key(key, version), self._ttl(timeout)
        with self._explaining:
            await arun(steps.store(self.acoherent_cache, name, value, ttl, tags))

    def add(
        self,
        key: Any,
        value: Any,
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        tags: Iterable[str] = (),
    ) -> bool:
        """Store a value if there is none; return whether there was none."""
        name, ttl = self.make_and_validate_key(key, version), self._ttl(timeout)
        with self._explaining:
            return run(steps.add(self.coherent_cache, name, value, ttl, tags))

    async def aadd(
        self,
        key: Any,
        value: Any,
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        tags: Iterable[str] = (),
    ) -> bool:
        """See :meth:`add`."""
        name, ttl = self.make_and_validate_key(key, version), self._ttl(timeout)
        with self._explaining:
            return await arun(steps.add(self.acoherent_cache, name, value, ttl, tags))

    def touch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Give a value another time to live; return whether there is one."""
        return run(steps.touch(self.coherent_cache, self.make_and_validate_key(key, version), self._ttl(timeout)))

    async def atouch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """See :meth:`touch`."""
        name, ttl = self.make_and_validate_key(key, version), self._ttl(timeout)
        return await arun(steps.touch(self.acoherent_cache, name, ttl))

    def delete(self, key: Any, version: int | None = None) -> bool:
        """Delete a value; return whether there was one."""
        return self.coherent_cache.delete(self.make_and_validate_key(key, version))

    async def adelete(self, key: Any, version: int | None = None) -> bool:
        """See :meth:`delete`."""
        return await self.acoherent_cache.delete(self.make_and_validate_key(key, version))

    def has_key(self, key: Any, version: int | None = None) -> bool:
        """Tell whether there is a value."""
        return self.make_and_validate_key(key, version) in self.coherent_cache

    async def ahas_key(self, key: Any, version: int | None = None) -> bool:
        """See :meth:`has_key`."""
        return await self.aget(key, MISSING, version) is not MISSING

    def get_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        """Return the values of those keys that have one: local ones, and the others in one round trip."""
        names = self._names(keys, version)
        return {names[name]: value for name, value in self.coherent_cache.get_many(names).items()}

    async def aget_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        """See :meth:`get_many`."""
        names = self._names(keys, version)
        return {names[name]: value for name, value in (await self.acoherent_cache.get_many(names)).items()}

    def set_many(
        self,
        data: Mapping[Any, Any],
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        tags: Iterable[str] = (),
    ) -> list[Any]:
        """Store values, in one round trip; return an empty list: what cannot be stored raises."""
        named = {self.make_and_validate_key(key, version): value for key, value in data.items()}
        with self._explaining:
            run(steps.store_many(self.coherent_cache, named, self._ttl(timeout), tags))
        return []

    async def aset_many(
        self,
        data: Mapping[Any, Any],
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        tags: Iterable[str] = (),
    ) -> list[Any]:
        """See :meth:`set_many`."""
        named = {self.make_and_validate_key(key, version): value for key, value in data.items()}
        with self._explaining:
            await arun(steps.store_many(self.acoherent_cache, named, self._ttl(timeout), tags))
        return []

    def delete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        """Delete values, in one round trip."""
        self.coherent_cache.delete_many(self._names(keys, version))

    async def adelete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        """See :meth:`delete_many`."""
        await self.acoherent_cache.delete_many(self._names(keys, version))

    def get_or_set(
        self,
        key: Any,
        default: Any,
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        tags: Iterable[str] = (),
    ) -> Any:
        """Return the value of a key; if there is none, ``default`` or what it returns, asked once in the whole fleet.

        If the key is written, deleted or invalidated meanwhile, what was loaded is returned but not stored.
        """
        name, ttl = self.make_and_validate_key(key, version), self._ttl(timeout)

        def load() -> Any:
            return default() if callable(default) else default

        with self._explaining:
            return run(steps.get_or_set(self.coherent_cache, name, load, ttl, tags))

    async def aget_or_set(
        self,
        key: Any,
        default: Any,
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        tags: Iterable[str] = (),
    ) -> Any:
        """See :meth:`get_or_set`. ``default`` may be a coroutine function; a plain one is called in Django's thread."""
        name, ttl = self.make_and_validate_key(key, version), self._ttl(timeout)

        async def load() -> Any:
            if not callable(default):
                return default
            return await (default if iscoroutinefunction(default) else sync_to_async(default))()

        with self._explaining:
            return await arun(steps.get_or_set(self.acoherent_cache, name, load, ttl, tags))

    def incr(self, key: Any, delta: int = 1, version: int | None = None, *, tags: Iterable[str] = ()) -> Any:
        """Add to a value, atomically, and keep its time to live; return the new one. Its tags are those given here.

        Raises:
            ValueError: there is no value.
            VersionConflict: other writers were faster 100 times.
        """
        name = self.make_and_validate_key(key, version)
        return _there(key, run(steps.incr(self.coherent_cache, name, delta, tags)))

    async def aincr(self, key: Any, delta: int = 1, version: int | None = None, *, tags: Iterable[str] = ()) -> Any:
        """See :meth:`incr`."""
        name = self.make_and_validate_key(key, version)
        return _there(key, await arun(steps.incr(self.acoherent_cache, name, delta, tags)))

    def incr_version(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """Move a value to another version of its key, at once for everybody, and keep its time to live.

        Raises:
            ValueError: there is no value.
        """
        version = self.version if version is None else version
        old, new = self.make_and_validate_key(key, version), self.make_and_validate_key(key, version + delta)
        entry = _there(key, self.coherent_cache.get_entry(old) or MISSING)
        with self.coherent_cache.batch() as batch:
            batch.set(new, entry.value, ttl=steps.at_least(entry.expires_in))
            batch.delete(old)
        return version + delta

    async def aincr_version(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """See :meth:`incr_version`."""
        version = self.version if version is None else version
        old, new = self.make_and_validate_key(key, version), self.make_and_validate_key(key, version + delta)
        entry = _there(key, await self.acoherent_cache.get_entry(old) or MISSING)
        async with self.acoherent_cache.batch() as batch:
            batch.set(new, entry.value, ttl=steps.at_least(entry.expires_in))
            batch.delete(old)
        return version + delta

    def clear(self) -> None:
        """Remove everything in the namespace, whatever its prefix and version, for all processes, in O(1)."""
        self.coherent_cache.clear()

    async def aclear(self) -> None:
        """See :meth:`clear`."""
        await self.acoherent_cache.clear()

    # -- beyond Django's -------------------------------------------------------------------------------------------

    @overload
    def invalidate_tags(self, *tags: str, wait: None = None) -> Version: ...

    @overload
    def invalidate_tags(self, *tags: str, wait: float) -> Acknowledgement: ...

    def invalidate_tags(self, *tags: str, wait: float | None = None) -> Version | Acknowledgement:
        """Make every value that carries one of the tags absent, for all processes, in O(1) per tag.

        With ``wait``, return when no process can serve one any more; see :meth:`CoherentCache.set`.
        """
        if wait is None:
            return self.coherent_cache.invalidate_tags(*tags)
        return self.coherent_cache.invalidate_tags(*tags, wait=wait)

    @overload
    async def ainvalidate_tags(self, *tags: str, wait: None = None) -> Version: ...

    @overload
    async def ainvalidate_tags(self, *tags: str, wait: float) -> Acknowledgement: ...

    async def ainvalidate_tags(self, *tags: str, wait: float | None = None) -> Version | Acknowledgement:
        """See :meth:`invalidate_tags`."""
        if wait is None:
            return await self.acoherent_cache.invalidate_tags(*tags)
        return await self.acoherent_cache.invalidate_tags(*tags, wait=wait)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _names(self, keys: Iterable[Any], version: int | None) -> dict[str, Any]:
        return {self.make_and_validate_key(key, version): key for key in keys}

    def _ttl(self, timeout: Any) -> float | None:
        """Return seconds, None for ever, or 0 for what is not to be stored."""
        if timeout is DEFAULT_TIMEOUT:
            timeout = self.default_timeout
        if timeout is None:
            return None
        return 0 if timeout <= 0 else steps.at_least(timeout)


class _Explaining:
    """Makes the error of a value that cannot be stored what a user of Django expects, and can do something about."""

    def __init__(self, *, chosen: bool) -> None:
        self._chosen = chosen

    def __enter__(self) -> None:
        """Nothing is to be done before."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not isinstance(error, SerializationError) or isinstance(error, ValueTooLarge):
            return
        if not self._chosen:
            error.add_note(_HOW_TO_STORE_IT)
        elif _is_caused_by_pickle(error):
            raise UnpicklableValue(error.reason, key=error.key) from error


def _is_caused_by_pickle(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, PickleError):
        error = error.__cause__
    return error is not None


def _there(key: Any, found: Any) -> Any:
    if found is MISSING:
        raise ValueError(f"Key {key!r} not found")
    return found


def _make(location: object, options: Mapping[str, Any]) -> CoherentCache:
    if not isinstance(location, str) or not location:
        raise ConfigError("LOCATION", "must be the URL of Redis, for instance 'redis://localhost:6379/0'")
    for option, reason in _NOT_HERE.items():
        if option in options:
            raise ConfigError(f"OPTIONS[{option!r}]", reason)
    try:
        return CoherentCache(location, **{"namespace": DEFAULT_NAMESPACE, **options})
    except TypeError as error:
        raise ConfigError("OPTIONS", f"not for a CoherentCache: {error}") from None
