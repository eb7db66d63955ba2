"""A backend for regions of dogpile.cache, and an invalidation of regions that all processes notice.

::

    region = dogpile.cache.make_region().configure(
        "coherent_cache",
        expiration_time=60,
        arguments={"url": "redis://localhost:6379/0", "namespace": "shop", "distributed_lock": True},
    )

dogpile finds the backend by its entry point; without one, importing this module registers it. Values are stored with
their metadata by the cache's own serializer, not by dogpile's pickle, unless the region has a serializer.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from threading import Lock
from typing import Any, Final

from coherent_cache import MISSING, CoherentCache, ConfigError, ForeignValue, Version, VersionConflict
from coherent_cache.config import check_seconds
from coherent_cache.contrib.extras import missing_extra

try:
    from dogpile.cache import register_backend
    from dogpile.cache.api import NO_VALUE, CacheBackend, CachedValue, CacheMutex
    from dogpile.cache.region import RegionInvalidationStrategy
    from dogpile.cache.util import length_conditional_mangler, sha1_mangle_key
except ModuleNotFoundError as error:
    raise missing_extra("dogpile", error) from error

LOCK_TIMEOUT: Final = 60.0
"""Seconds after which a lock whose holder has died is free again."""

LOCK_SLEEP: Final = 0.05
"""Seconds between attempts to get a lock that another process holds."""

LONGEST_KEY: Final = 200
"""Characters of a key above which its digest is taken."""


class CoherentCacheBackend(CacheBackend):
    """dogpile.cache's backend over a :class:`CoherentCache`.

    Arguments:
        cache: the cache to use. Or, for one of its own:
        url: where Redis is, as for :class:`CoherentCache`, and any other of its options. ``ttl`` is None unless given:
            values must outlive the region's ``expiration_time``, or nothing is served while they are made anew.
        tags: tags of all values.
        distributed_lock: True: one process at a time makes a value; False: one thread of each process.
        lock_timeout: seconds after which a lock whose holder has died is free; longer than a value takes to be made.
        lock_sleep: seconds between attempts to get a lock that another process holds.

    Raises:
        ConfigError: an argument is unknown or cannot be.
    """

    key_mangler = staticmethod(length_conditional_mangler(LONGEST_KEY, sha1_mangle_key))

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        options = dict(arguments)
        self._tags = options.pop("tags", ())
        self._distributed: bool = options.pop("distributed_lock", False)
        self._lock_timeout = options.pop("lock_timeout", LOCK_TIMEOUT)
        self._lock_sleep = options.pop("lock_sleep", LOCK_SLEEP)
        if not isinstance(self._distributed, bool):
            raise ConfigError("distributed_lock", f"must be True or False, not {self._distributed!r}")
        for option, value in (("lock_timeout", self._lock_timeout), ("lock_sleep", self._lock_sleep)):
            if value is None:
                raise ConfigError(option, "must be seconds, not None")
            check_seconds(option, value)
        self.cache = _cache_of(options)

    def has_lock_timeout(self) -> bool:
        """Tell whether a lock can end while a value is made."""
        return self._distributed

    def get_mutex(self, key: str) -> CacheMutex | None:
        """Return the lock of a key; None for dogpile's own, which is one of this process."""
        if not self._distributed:
            return None
        return DistributedMutex(self.cache, key, timeout=self._lock_timeout, sleep=self._lock_sleep)

    def get(self, key: str) -> Any:
        """Return the value of a key, or NO_VALUE."""
        return _from_stored(key, self.cache.get(key, MISSING))

    def get_multi(self, keys: Iterable[str]) -> Sequence[Any]:
        """Return the values of keys, in one round trip."""
        wanted = list(keys)
        found = self.cache.get_many(wanted)
        return [_from_stored(key, found.get(key, MISSING)) for key in wanted]

    def set(self, key: str, value: Any) -> None:
        """Store a value."""
        self.cache.set(key, _to_store(value), tags=self._tags)

    def set_multi(self, mapping: Mapping[str, Any]) -> None:
        """Store values, in one round trip."""
        self.cache.set_many({key: _to_store(value) for key, value in mapping.items()}, tags=self._tags)

    def delete(self, key: str) -> None:
        """Delete a value."""
        self.cache.delete(key)

    def delete_multi(self, keys: Iterable[str]) -> None:
        """Delete values, in one round trip."""
        self.cache.delete_many(keys)


class DistributedMutex(CacheMutex):
    """A lock of all processes: a value that only one of them can store, which goes by itself if its holder dies.

    It is not reentrant, and another thread than the one that acquired it may release it.
    """

    def __init__(self, cache: CoherentCache, key: str, *, timeout: float, sleep: float) -> None:
        """Name a lock; nothing is sent yet.

        Args:
            cache: where it is.
            key: what it is for.
            timeout: seconds after which it is free even if it was not released.
            sleep: seconds between attempts.
        """
        self._cache = cache
        self._key = f"lock:{key}"
        self._timeout = timeout
        self._sleep = sleep
        self._mine = Lock()  # threads that share this object need not ask Redis
        self._version: Version | None = None

    def acquire(self, wait: bool = True) -> bool:  # noqa: FBT001, FBT002 - dogpile's signature
        """Acquire the lock; without ``wait``, return False if it is not free.

        Raises:
            CacheUnavailable: Redis refused or is away.
        """
        if not self._mine.acquire(blocking=wait):
            return False
        try:
            while not self._take():
                if not wait:
                    return False
                time.sleep(self._sleep)
            return True
        finally:
            if self._version is None:
                self._mine.release()

    def release(self) -> None:
        """Release the lock. One that has ended meanwhile is left alone: another process may have it.

        Raises:
            CacheUnavailable: Redis refused or is away. The lock ends by itself then.
        """
        version, self._version = self._version, None
        try:
            with suppress(VersionConflict):
                self._cache.delete(self._key, if_version=version)
        finally:
            self._mine.release()

    def locked(self) -> bool:
        """Tell whether anybody has the lock."""
        return self._cache.get(self._key, MISSING, max_staleness=0) is not MISSING

    def _take(self) -> bool:
        try:
            self._version = self._cache.set(self._key, True, ttl=self._timeout, if_version=MISSING)
        except VersionConflict:
            return False
        return True


class CoherentInvalidation(RegionInvalidationStrategy):
    """Makes ``region.invalidate()`` count for all processes; dogpile's own counts for the one that calls it.

    ::

        region.configure("coherent_cache", ..., region_invalidator=CoherentInvalidation(cache, "prices"))

    When the region was invalidated is a value in the cache, which each read of the region looks up locally. As with
    dogpile's own, times of several hosts are compared, so a value can survive by as much as their clocks differ.
    """

    def __init__(self, cache: CoherentCache, name: str) -> None:
        """Name the region.

        Args:
            cache: the cache.
            name: name of the region, the same in all processes.
        """
        self._cache = cache
        self._key = f"invalidated:{name}"

    def invalidate(self, hard: bool = True) -> None:  # noqa: FBT001, FBT002 - dogpile's signature
        """Invalidate all values that were made before now; a soft one lets them be served while they are made anew."""
        self._cache.set(self._key, (bool(hard), time.time()), ttl=None)

    def is_invalidated(self, timestamp: float) -> bool:
        """Tell whether a value of that time is invalidated."""
        found = self._last()
        return found is not None and timestamp < found[1]

    def is_hard_invalidated(self, timestamp: float) -> bool:
        """Tell whether it is, and must not be served."""
        found = self._last()
        return found is not None and found[0] and timestamp < found[1]

    def is_soft_invalidated(self, timestamp: float) -> bool:
        """Tell whether it is, and may be served while it is made anew."""
        found = self._last()
        return found is not None and not found[0] and timestamp < found[1]

    def was_hard_invalidated(self) -> bool:
        """Tell whether the last invalidation was a hard one."""
        found = self._last()
        return found is not None and found[0]

    def was_soft_invalidated(self) -> bool:
        """Tell whether the last invalidation was a soft one."""
        found = self._last()
        return found is not None and not found[0]

    def _last(self) -> tuple[bool, float] | None:
        found: tuple[bool, float] | None = self._cache.get(self._key)
        return found


def _cache_of(options: dict[str, Any]) -> CoherentCache:
    cache = options.pop("cache", None)
    if cache is None:
        try:
            return CoherentCache(**{"ttl": None, **options})
        except TypeError as error:
            raise ConfigError("arguments", f"not for a CoherentCache: {error}") from None
    if not isinstance(cache, CoherentCache):
        raise ConfigError("cache", f"must be a CoherentCache, not {type(cache).__name__}")
    if options:
        raise ConfigError("arguments", f"a cache is given, so {', '.join(sorted(options))} has no effect; leave it out")
    return cache


def _to_store(value: Any) -> Any:
    """Return what is stored: bytes of the region's serializer, or a value and its metadata as a pair."""
    return (value.payload, dict(value.metadata)) if isinstance(value, CachedValue) else value


def _from_stored(key: str, stored: Any) -> Any:
    if stored is MISSING:
        return NO_VALUE
    if isinstance(stored, bytes):
        return stored
    if isinstance(stored, tuple) and len(stored) == 2 and isinstance(stored[1], dict):
        return CachedValue(*stored)
    raise ForeignValue(key, "no value of a dogpile region")


register_backend("coherent_cache", __name__, CoherentCacheBackend.__name__)  # type: ignore[no-untyped-call]
