"""Django's cache backend. One :class:`CoherentCache` per configuration and process, however many threads there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, overload

from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache

from coherent_cache import (
    MISSING,
    Acknowledgement,
    CoherentCache,
    ConfigError,
    SerializationError,
    ValueTooLarge,
    Version,
    VersionConflict,
)

DEFAULT_NAMESPACE: Final = "django"
"""The namespace, unless ``OPTIONS`` name another."""

SHORTEST_TTL: Final = 0.001
"""Seconds: Redis' resolution. A shorter timeout above zero becomes this."""

INCR_ATTEMPTS: Final = 100
"""How often ``incr`` tries before it gives up against faster writers."""

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


class CoherentCacheBackend(BaseCache):
    """A cache backend whose local hits are coherent with all processes.

    ``LOCATION`` is where Redis is, ``OPTIONS`` are those of :class:`CoherentCache` but ``url`` and ``ttl``; the
    namespace is ``django`` unless they say otherwise. All of Django's other settings mean what they mean to Django.

    Beyond Django's own methods, ``tags=`` gives values tags, and :meth:`invalidate_tags` makes all that carry one
    absent; tags belong to the namespace, whatever prefix and version a key has. The cache itself is
    :attr:`coherent_cache`, with statistics, versions and the rest; its keys are those of ``make_key``.
    """

    def __init__(self, location: str, params: dict[str, Any]) -> None:
        """Find or make the cache of a configuration. Django calls this.

        Raises:
            ConfigError: ``LOCATION`` or one of the ``OPTIONS`` is unusable.
        """
        super().__init__(params)
        options = params.get("OPTIONS", {})
        self._chosen = "serializer" in options
        # Nothing is locked, so nothing is locked in a forked child either. Of two caches that threads have made at the
        # same time, one is dropped before it has started.
        identity = (location, *sorted(options.items()))
        try:
            cache = _shared.get(identity)
        except TypeError as error:
            raise ConfigError("CACHES", f"LOCATION and OPTIONS must be hashable: {error}") from None
        self.coherent_cache = cache or _shared.setdefault(identity, _make(location, options))

    # -- Django's methods ------------------------------------------------------------------------------------------

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        """Return the value of a key, or ``default``."""
        return self.coherent_cache.get(self.make_and_validate_key(key, version), default)

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
        try:
            if ttl == 0:
                self.coherent_cache.delete(name)
            else:
                self.coherent_cache.set(name, value, ttl=ttl, tags=tags)
        except SerializationError as error:
            self._explain(error)
            raise

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
        if ttl == 0:
            return name not in self.coherent_cache
        try:
            self.coherent_cache.set(name, value, ttl=ttl, tags=tags, if_version=MISSING)
        except VersionConflict:
            return False
        except SerializationError as error:
            self._explain(error)
            raise
        return True

    def touch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Give a value another time to live; return whether there is one."""
        name, ttl = self.make_and_validate_key(key, version), self._ttl(timeout)
        return self.coherent_cache.delete(name) if ttl == 0 else self.coherent_cache.touch(name, ttl)

    def delete(self, key: Any, version: int | None = None) -> bool:
        """Delete a value; return whether there was one."""
        return self.coherent_cache.delete(self.make_and_validate_key(key, version))

    def has_key(self, key: Any, version: int | None = None) -> bool:
        """Tell whether there is a value."""
        return self.make_and_validate_key(key, version) in self.coherent_cache

    def get_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        """Return the values of those keys that have one: local ones, and the others in one round trip."""
        names = {self.make_and_validate_key(key, version): key for key in keys}
        return {names[name]: value for name, value in self.coherent_cache.get_many(names).items()}

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
        ttl = self._ttl(timeout)
        try:
            if ttl == 0:
                self.coherent_cache.delete_many(named)
            else:
                self.coherent_cache.set_many(named, ttl=ttl, tags=tags)
        except SerializationError as error:
            self._explain(error)
            raise
        return []

    def delete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        """Delete values, in one round trip."""
        self.coherent_cache.delete_many([self.make_and_validate_key(key, version) for key in keys])

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

        if ttl == 0:
            value = self.coherent_cache.get(name, MISSING)
            return load() if value is MISSING else value
        try:
            return self.coherent_cache.get_or_set(name, load, ttl=ttl, tags=tags)
        except SerializationError as error:
            self._explain(error)
            raise

    def incr(self, key: Any, delta: int = 1, version: int | None = None, *, tags: Iterable[str] = ()) -> Any:
        """Add to a value, atomically, and keep its time to live; return the new one. Its tags are those given here.

        Raises:
            ValueError: there is no value.
            VersionConflict: other writers were faster 100 times.
        """
        name = self.make_and_validate_key(key, version)
        for attempt in range(INCR_ATTEMPTS):
            entry = self.coherent_cache.get_entry(name)
            if entry is None:
                raise ValueError(f"Key {key!r} not found")
            value, ttl = entry.value + delta, _at_least(entry.expires_in)
            try:
                self.coherent_cache.set(name, value, ttl=ttl, tags=tags, if_version=entry.version)
            except VersionConflict:
                if attempt == INCR_ATTEMPTS - 1:
                    raise
                self.coherent_cache.get(name, max_staleness=0)  # the local entry may not know of the faster one yet
            else:
                return value
        raise AssertionError("unreachable: there is at least one attempt")

    def incr_version(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """Move a value to another version of its key, at once for everybody, and keep its time to live.

        Raises:
            ValueError: there is no value.
        """
        version = self.version if version is None else version
        old, new = self.make_and_validate_key(key, version), self.make_and_validate_key(key, version + delta)
        entry = self.coherent_cache.get_entry(old)
        if entry is None:
            raise ValueError(f"Key {key!r} not found")
        with self.coherent_cache.batch() as batch:
            batch.set(new, entry.value, ttl=_at_least(entry.expires_in))
            batch.delete(old)
        return version + delta

    def clear(self) -> None:
        """Remove everything in the namespace, whatever its prefix and version, for all processes, in O(1)."""
        self.coherent_cache.clear()

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

    # -- inside ----------------------------------------------------------------------------------------------------

    def _ttl(self, timeout: Any) -> float | None:
        """Return seconds, None for ever, or 0 for what is not to be stored."""
        if timeout is DEFAULT_TIMEOUT:
            timeout = self.default_timeout
        if timeout is None:
            return None
        return 0 if timeout <= 0 else _at_least(timeout)

    def _explain(self, error: SerializationError) -> None:
        """Add what a user of Django may do about it to the error of a value that cannot be stored."""
        if not self._chosen and not isinstance(error, ValueTooLarge):
            error.add_note(_HOW_TO_STORE_IT)


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


def _at_least(ttl: float | None) -> float | None:
    return None if ttl is None else max(ttl, SHORTEST_TTL)
