"""The synchronous front: a thin driver of the core's operations, with the local hit inlined."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Unpack, cast, overload

from coherent_cache import config
from coherent_cache.aio import AsyncCoherentCache
from coherent_cache.batch import Batch
from coherent_cache.core.acknowledging import Acknowledgement
from coherent_cache.core.load_options import LoadContext, with_context
from coherent_cache.core.operations import MISSING, Missing
from coherent_cache.core.requests import Operation
from coherent_cache.defaults import DEFAULT, Default
from coherent_cache.errors import CacheUnavailable
from coherent_cache.front import CacheEntry, several
from coherent_cache.loading_front import OF_LOADS, GetOrSetKeywords, LoadingFront, LoadKeywords, LoadResult
from coherent_cache.memoize import Cached, CachedKeywords, Key, P, R, Tags
from coherent_cache.observing import Observing
from coherent_cache.runtime import clock
from coherent_cache.versions import Version
from coherent_cache.wire import Kind


class CoherentCache(LoadingFront, Observing):
    """A two-tier cache that can be trusted: a local tier in this process, Redis behind it, coherent with all peers.

    The contract: a read returns a value that was current at some moment in the last ``max_staleness`` seconds, or a
    newer one; one instance never returns an older version of a key after a newer one, and reads its own writes; when
    writes stop, all instances hold what Redis holds; nothing is reported written that Redis refused.

    Starting is lazy (the first call that needs Redis starts the thread) and survives a fork: a child begins with an
    empty local tier, connections, thread and instance id of its own. Safe to share between threads.
    """

    # -- reading ---------------------------------------------------------------------------------------------------

    def get(
        self,
        key: str,
        default: Any = None,
        max_staleness: float | None = None,
        min_version: Version | None = None,
    ) -> Any:
        """Return the value of a key, from the local tier or else from Redis, or ``default`` if there is none.

        Args:
            key: a non-empty str of at most 1,024 UTF-8 bytes.
            default: what to return if the key is absent.
            max_staleness: seconds: ask Redis unless the local tier was proven fresh not longer ago than that; 0 asks in
                any case. More than the cache's own ``max_staleness`` changes nothing.
            min_version: a version that ``set`` returned, perhaps on another instance: nothing older is returned. If
                Redis itself has lost it, the key counts as absent; versions of a history that Redis has lost as a whole
                ask nothing.

        Raises:
            InvalidKey, ConfigError: before anything is sent.
            CacheUnavailable: Redis refused or is away.
            NotCoherent: ``on_disconnect="fail"``, and freshness cannot be proven.
            ForeignValue: the key holds bytes of another program, and ``on_foreign="raise"``.
            SerializationError: the stored value cannot be decoded.
        """
        # For a fast hit: CPython calls functions without keyword-only arguments faster, and one comparison does for two
        # options that can only be the same object if both are None.
        if max_staleness is not min_version:  # type: ignore[comparison-overlap]
            return self._get(key, default, max_staleness, min_version)
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
        return self._get(key, default)

    def _get(
        self, key: str, default: Any, max_staleness: float | None = None, min_version: Version | None = None
    ) -> Any:
        """Go on where the inlined hit left off: several shards, stale service, readers who want more, a miss."""
        entry = self._fresh_entry(key, max_staleness, min_version)
        if entry is not None:
            return self._value(entry)
        return self._runtime.run(self._read_value(key, default, min_version))

    def get_entry(self, key: str) -> CacheEntry | None:
        """Return the value of a key with its version, tier and age, or None if there is none.

        Raises:
            As :meth:`get`.
        """
        return self._local_cache_entry(key) or self._runtime.run(self._read_entry(key))

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return the values of those keys that are there, by key: local ones, and the others in one round trip.

        Args:
            keys: keys; repeated ones count once.

        Raises:
            As :meth:`get`.
        """
        found, missing = self._look_up(several(keys))
        if not missing:
            return found
        read = self._runtime.run(self._read_many(missing))
        return found | read if found else read

    def warm(self, keys: Iterable[str]) -> int:
        """Load keys into the local tier, in one round trip per 1,000; return how many of them are in it afterwards.

        Waits until the instance is coherent, ``timeout`` seconds at most: before that nothing may be kept.

        Raises:
            As :meth:`get`.
        """
        wanted = self._to_warm(keys)
        self.wait_ready(self._settings.timeout)
        self.get_many(wanted)
        return self._held(wanted)

    # -- loading ---------------------------------------------------------------------------------------------------

    def get_or_set(self, key: str, loader: Callable[..., Any], **options: Unpack[GetOrSetKeywords]) -> Any:
        """Return the value of a key; if there is none, load it: once per key in the whole fleet (P11).

        While the loader runs, other callers wait for it, in all processes; its lease is renewed, and lost with its
        process. If the key is written, deleted, or cleared meanwhile, or one of its tags invalidated, then what it
        returns is stored in neither tier; its callers still get it. ``None`` is a value. What a loader raises reaches
        all who wait for it in this process, and nothing is stored; other processes then load for themselves.

        Args:
            key: a non-empty str of at most 1,024 UTF-8 bytes.
            loader: returns the value; ``MISSING`` for "no such thing". If it has a parameter without default, it is
                given a :class:`LoadContext`, whose ``ttl`` and ``tags`` it may change by what it loads.
            ttl: seconds that the value lives in Redis; None for ever; default as the cache was configured.
            tags: as for :meth:`set`.
            default: what to return if the loader says ``MISSING``.
            jitter: part of the ttl, at random, by which it is shortened, so that not all expire at once.
            negative_ttl: seconds for which ``MISSING`` is remembered; None for not at all. ``get`` shows such a key as
                absent.
            fail_safe: seconds beyond its time for which the last value that this instance knew is served if the loader
                raises or Redis is away; None for never. A value known to be outdated is not served. Such values take
                memory beside the local tier, within the same ``max_entries`` and ``max_bytes``.
            error_ttl: seconds for which what the loader raised is raised again, in this process, without another
                attempt; None for not at all.
            throttle: seconds after a failure in which the last known value is served without another attempt.
            soft_timeout: seconds after which the last known value is served, if there is one (needs ``fail_safe``);
                the load goes on in the background.
            hard_timeout: seconds after which :class:`LoaderTimeout` is raised; the load goes on in the background.
                Neither time-out bounds the read of Redis before the load: that is what ``timeout`` does.
            refresh_ahead: part of the ttl at whose end a hit loads the value anew, in the background, once in
                the fleet.
            skip_local: do not read from the local tier.
            max_staleness: as for :meth:`get`.
            min_version: as for :meth:`get`.

        Raises:
            InvalidKey, ConfigError: before anything is sent.
            LoaderTimeout: ``hard_timeout`` is over.
            LoaderDeadlock: in a loader that asks, perhaps through others, for what it is to load.
            Others: what the loader raises; as :meth:`get`; ``SerializationError`` if the value cannot be stored.
        """
        # Keywords one by one would cost a hit as much as the look-up itself.
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
        found = self._here(wish) or self._runtime.run(self._load(wish))
        return self._loaded_value(found, default)

    def get_or_set_entry(self, key: str, loader: Callable[..., Any], **options: Unpack[LoadKeywords]) -> LoadResult:
        """As :meth:`get_or_set`, but return the value with its version, where it came from, and whether it is stale.

        It has no ``default``: the value of "no such thing" is ``MISSING``.
        """
        self._shard_of(key)  # checks the key
        return self._runtime.run(self._load_entry(self._wish(key, loader, options)))

    def get_or_set_many(
        self,
        keys: Iterable[str],
        loader: Callable[[list[str]], Mapping[str, Any]],
        *,
        ttl: float | Default | None = DEFAULT,
        tags: Iterable[str] = (),
        jitter: float | None = None,
        negative_ttl: float | None = None,
    ) -> dict[str, Any]:
        """Return the values of keys; load those that are nowhere, by one call of the loader, once in the fleet (P11).

        Per 1,000 keys one round trip reads, one asks for the leases, one stores. What others are just loading is waited
        for afterwards; only if they give it up the loader is called again.

        Args:
            keys: keys; repeated ones count once.
            loader: gets the keys to load; returns their values by key. A key that it leaves out, or gives ``MISSING``,
                is "no such thing".
            ttl: as for :meth:`get_or_set`.
            tags: tags of all that is loaded.
            jitter: as for :meth:`get_or_set`, for each value.
            negative_ttl: as for :meth:`get_or_set`.

        Returns:
            The values of those keys that there are.

        Raises:
            As :meth:`get_or_set`; ``ConfigError`` if the loader returns no mapping, or keys that it was not asked for.
        """
        options = self._options_of_many(loader, ttl, tags, jitter, negative_ttl)
        wanted = several(keys)
        found, missing = self._look_up(wanted)
        if missing:
            found |= self._runtime.run(self._load_many(missing, loader, options))
        return {key: found[key] for key in wanted if found.get(key, MISSING) is not MISSING}

    # -- writing ---------------------------------------------------------------------------------------------------

    @overload
    def set(
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
    def set(
        self,
        key: str,
        value: Any,
        *,
        ttl: float | Default | None = DEFAULT,
        tags: Iterable[str] = (),
        if_version: Version | Missing | None = None,
        wait: float,
    ) -> Acknowledgement: ...

    def set(
        self,
        key: str,
        value: Any,
        *,
        ttl: float | Default | None = DEFAULT,
        tags: Iterable[str] = (),
        if_version: Version | Missing | None = None,
        wait: float | None = None,
    ) -> Version | Acknowledgement:
        """Store a value in Redis, tell all peers, keep it locally; return its version (P1).

        Args:
            key: a non-empty str of at most 1,024 UTF-8 bytes.
            value: what the serializer takes.
            ttl: seconds until it expires, from 0.001; None for never; default as the cache was configured.
            tags: :meth:`invalidate_tags` with one of them makes the value absent.
            if_version: store only if the present value has this version; ``MISSING``: only if there is none.
            wait: seconds to wait, at most, until no instance can serve an older value any more (P12); the result then
                tells how that went. Normally that takes a round trip, at most the longest ``max_staleness`` of all
                instances (``stale_limit`` with ``serve_stale``) and a margin. Without a local tier it always takes that
                long.

        Returns:
            The version; with ``wait``, an :class:`Acknowledgement`.

        Raises:
            InvalidKey, SerializationError, ValueTooLarge, ConfigError: before anything is sent.
            VersionConflict: ``if_version`` does not hold. Nothing was written.
            CacheUnavailable: Redis refused or is away; ``maybe_applied`` tells whether it may have happened.
        """
        result: Version | Acknowledgement = self._runtime.run(self._set(key, value, ttl, tags, if_version, wait))
        return result

    def set_many(
        self, mapping: Mapping[str, Any], *, ttl: float | Default | None = DEFAULT, tags: Iterable[str] = ()
    ) -> dict[str, Version]:
        """Store several values, 1,000 per round trip and message; return their versions by key.

        Raises:
            As :meth:`set`; with ``CacheUnavailable``, ``applied_keys`` tells which were written all the same.
        """
        return self._runtime.run(self._set_many(mapping, ttl, tags))

    @overload
    def delete(self, key: str, *, if_version: Version | None = None, wait: None = None) -> bool: ...

    @overload
    def delete(self, key: str, *, if_version: Version | None = None, wait: float) -> Acknowledgement: ...

    def delete(
        self, key: str, *, if_version: Version | None = None, wait: float | None = None
    ) -> bool | Acknowledgement:
        """Delete a value in Redis and in all local tiers; return whether it was there.

        Args:
            key: the key.
            if_version: delete only if the present value has this version.
            wait: as for :meth:`set`; an :class:`Acknowledgement` is returned then.

        Raises:
            InvalidKey: before anything is sent.
            VersionConflict: ``if_version`` does not hold. Nothing was deleted.
            CacheUnavailable: Redis refused or is away; ``maybe_applied`` tells whether it may have happened.
        """
        result: bool | Acknowledgement = self._runtime.run(self._delete(key, if_version, wait))
        return result

    def delete_many(self, keys: Iterable[str]) -> int:
        """Delete several values, 1,000 per round trip and message; return how many were there.

        Raises:
            As :meth:`delete`; with ``CacheUnavailable``, ``applied_keys`` tells which were deleted all the same.
        """
        return self._runtime.run(self._delete_many(keys))

    def batch(self) -> Batch:
        """Collect writes and send them together: one script per shard, one version and one message (P1).

        ::

            with cache.batch() as b:
                b.set("product:7", product, tags=["products"])
                b.delete("product:8")
            b.result.versions

        Nothing is sent before the end of the block, and nothing at all if an exception leaves it; nothing is visible to
        reads before. More than 1,000 keys (or 4 MiB) go as several scripts, one after the other: each is done as a
        whole or not at all, and occupies Redis for 4 to 8 ms; it serves others in between.

        Raises:
            CacheUnavailable: at the end of the block: Redis refused a part of it or is away; ``b.result`` then tells of
                each key whether it was written, was refused, or was not sent. A batch that stores anything is refused
                when Redis' memory is full; one that only deletes is not.
        """
        return Batch(lambda: self._runtime)

    def touch(self, key: str, ttl: float | Default | None = DEFAULT) -> bool:
        """Give a value another time to live, under a new version; return whether it was there.

        Args:
            key: the key.
            ttl: seconds from now, from 0.001; None for ever; default as the cache was configured.

        Raises:
            As :meth:`delete`.
        """
        return self._runtime.run(self._touch(key, ttl))

    def update(
        self,
        key: str,
        fn: Callable[[Any], Any],
        *,
        default: Any = None,
        ttl: float | Default | None = DEFAULT,
        tags: Iterable[str] = (),
    ) -> Any:
        """Change a value atomically: read it from Redis, call ``fn``, compare-and-set, again if another was faster.

        Args:
            key: the key.
            fn: makes the new value from the present one; may be called several times, so it should have no effects
                of its own. Returning ``MISSING`` deletes the value.
            default: what ``fn`` gets if the key is absent.
            ttl: as for :meth:`set`; the value's time to live begins anew.
            tags: as for :meth:`set`.

        Returns:
            The new value.

        Raises:
            VersionConflict: other writers were faster 100 times.
            Others: as :meth:`get` and :meth:`set`, and what ``fn`` raises.
        """
        return self._runtime.run(self._update(key, fn, default, ttl, tags))

    @overload
    def clear(self, *, wait: None = None) -> Version: ...

    @overload
    def clear(self, *, wait: float) -> Acknowledgement: ...

    def clear(self, *, wait: float | None = None) -> Version | Acknowledgement:
        """Make every value of the namespace absent, for all instances, in O(1) per shard (P10).

        Args:
            wait: as for :meth:`set`.

        Returns:
            The version of the clear (of the last shard's, if there are several): values up to it are gone. With
            ``wait``, an :class:`Acknowledgement`.

        Raises:
            CacheUnavailable: Redis refused or is away; with several shards, some may be cleared.
        """
        result: Version | Acknowledgement = self._runtime.run(self._raise_floor(Kind.CLEAR, (), wait))
        return result

    @overload
    def invalidate_tags(self, *tags: str, wait: None = None) -> Version: ...

    @overload
    def invalidate_tags(self, *tags: str, wait: float) -> Acknowledgement: ...

    def invalidate_tags(self, *tags: str, wait: float | None = None) -> Version | Acknowledgement:
        """Make every value that carries one of the tags absent, for all instances, in O(1) per shard and tag (P10).

        Args:
            *tags: at least one tag.
            wait: as for :meth:`set`.

        Returns:
            As :meth:`clear`.

        Raises:
            ConfigError: no tag, or one that is none.
            CacheUnavailable: as :meth:`clear`.
        """
        result: Version | Acknowledgement = self._runtime.run(self._raise_floor(Kind.TAG, tags, wait))
        return result

    # -- as a decorator --------------------------------------------------------------------------------------------

    def cached(
        self, *, key: Key = None, tags: Tags = (), ignore: Iterable[str] = (), **options: Unpack[CachedKeywords]
    ) -> Callable[[Callable[P, R]], Cached[P, R]]:
        """Cache what a function or method returns, for the whole fleet: each call is a :meth:`get_or_set`.

        ::

            @cache.cached(ttl=60, tags=["prices", "product:{product}"])
            def price(product: int, currency: str = "EUR") -> Decimal: ...

            price(7)                     # as ever
            price.invalidate(7)          # delete its result; .refresh(7) calls the function now
            price.key(7)                 # where it is; .uncached is the function itself

        The key is made of the function's module and name and of all arguments, by rules that give one text in every
        process (:mod:`coherent_cache.argument_keys`): of plain values, containers of them, enum members and frozen
        dataclasses, never of ``repr`` or ``id``. A function of a script is in ``__main__``, in every script.

        A method's ``self`` is an argument like any other: whatever it holds may matter. If it is a frozen dataclass or
        an enum member, it is a part of the key; else say what matters by ``key``, or that nothing does by ``ignore``.
        ``@classmethod`` and ``@staticmethod`` go above; a class is known by its name.

        Args:
            key: a format string over the parameters (``"price:{self.city}:{product}"``), or a callable that takes the
                arguments and returns the key; None for the rules above.
            tags: format strings over the parameters, or a callable that takes the arguments and returns the tags. Tags
                that depend on the result: use ``get_or_set`` with a :class:`LoadContext`.
            ignore: parameters that are left out of the key, for all results are the same whatever they are.
            **options: as for :meth:`get_or_set`.

        Raises:
            ConfigError: when decorating: an option cannot be; a coroutine or generator function; without ``key`` a
                lambda, or a function that refers to variables of a function around it.
            UnstableArgument: when called: an argument has no text that is the same in every process.
            Others: when called, as :meth:`get_or_set`.
        """
        self._options(cast("LoadKeywords", options))
        return lambda function: Cached(self, function, key=key, tags=tags, ignore=ignore, options=options)

    # -- as a mapping ----------------------------------------------------------------------------------------------

    def __contains__(self, key: str) -> bool:
        return self._local_entry(key) is not None or self._runtime.run(self._read(key)) is not None

    def __getitem__(self, key: str) -> Any:
        value = self.get(key, MISSING)
        if value is MISSING:
            raise KeyError(key)
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        self.set(key, value)

    def __delitem__(self, key: str) -> None:
        if not self.delete(key):
            raise KeyError(key)

    # -- this instance ---

    def wait_ready(self, timeout: float = config.DEFAULT_MAX_STALENESS) -> bool:
        """Start, and wait until the instance is coherent; return whether it is, after ``timeout`` seconds at most.

        Raises:
            NamespaceMismatch: the namespace was created with another number of shards or another format.
            CacheUnavailable: the cache is closed.
        """
        return self._runtime.wait(self._is_coherent, timeout)

    def close(self) -> None:
        """Stop the thread and close the connections; later calls that need Redis raise. Idempotent."""
        self._runtime.close()

    def __enter__(self) -> CoherentCache:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def aio(self) -> AsyncCoherentCache:
        """The front for asyncio on the same core: one local tier, one thread, one load of a key for both.

        The same object each time. To close either closes both.
        """
        aio: AsyncCoherentCache | None = vars(self).get("_aio")
        if aio is None:
            aio = AsyncCoherentCache.__new__(AsyncCoherentCache)
            aio._share(self._holder, self._settings, self._codec, self._endpoint)  # noqa: SLF001
            aio = vars(self).setdefault("_aio", aio)
        return aio

    # -- inside ----------------------------------------------------------------------------------------------------

    def _spawn(self, operation: Operation[Any]) -> bool:
        return self._runtime.spawn(operation)

    def _home(self) -> None:
        """Return None: threads have none."""

    def _loader(self, loader: Callable[..., Any]) -> Callable[[LoadContext], Any]:
        return with_context(loader)


__all__ = ["DEFAULT", "MISSING", "CacheEntry", "CacheUnavailable", "CoherentCache"]
