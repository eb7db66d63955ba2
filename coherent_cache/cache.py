"""The synchronous front: a thin driver of the core's operations, with the local hit inlined."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from random import Random
from typing import Any, Final, Literal, Unpack, cast, overload

from coherent_cache import config
from coherent_cache.batch import Batch
from coherent_cache.config import Settings, check_instance_id, check_seconds, check_ttl
from coherent_cache.core import operations
from coherent_cache.core.acknowledging import Acknowledgement, Write, acknowledge
from coherent_cache.core.entries import Entry
from coherent_cache.core.leasing import is_older
from coherent_cache.core.local_tier import LocalTier
from coherent_cache.core.operations import MISSING, Missing
from coherent_cache.core.requests import Condition
from coherent_cache.core.shard import Shard
from coherent_cache.core.states import State
from coherent_cache.core.stats import CacheStats, Counters
from coherent_cache.defaults import DEFAULT, Default
from coherent_cache.errors import CacheUnavailable, ConfigError, NotCoherent
from coherent_cache.events import Event
from coherent_cache.keys import check_key
from coherent_cache.loading_front import LoadingFront, LoadKeywords, several
from coherent_cache.memoize import Cached, CachedKeywords, Key, P, R, Tags
from coherent_cache.remote.topology import resolve
from coherent_cache.runtime import Runtime, RuntimeHolder, clock, make_instance_id
from coherent_cache.serializers import make_codec
from coherent_cache.serializers.compression import make_compressor
from coherent_cache.versions import Version
from coherent_cache.wire import Kind

UPDATE_ATTEMPTS: Final = 100
"""How often ``update`` tries before it gives up against faster writers."""


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """A value with what is known about it.

    Attributes:
        value: the value.
        version: its version.
        tier: ``local`` or ``redis``: where it was found.
        expires_in: seconds until it expires there; None if never.
        age_bound: seconds: it was current at some moment not longer ago than that.
    """

    value: Any
    version: Version
    tier: Literal["local", "redis"]
    expires_in: float | None
    age_bound: float


class CoherentCache(LoadingFront):
    """A two-tier cache that can be trusted: a local tier in this process, Redis behind it, coherent with all peers.

    The contract: a read returns a value that was current at some moment in the last ``max_staleness`` seconds, or a
    newer one; one instance never returns an older version of a key after a newer one, and reads its own writes; when
    writes stop, all instances hold what Redis holds; nothing is reported written that Redis refused.

    Starting is lazy (the first call that needs Redis starts the thread) and survives a fork: a child begins with an
    empty local tier, connections, thread and instance id of its own. Safe to share between threads.
    """

    def __init__(
        self,
        url: object = "embedded://",
        *,
        namespace: str,
        shards: int = 1,
        max_entries: int = config.DEFAULT_MAX_ENTRIES,
        max_bytes: int | None = None,
        policy: config.Policy = "lru",
        ttl: float | None = config.DEFAULT_TTL,
        local_ttl: float | None = None,
        local_enabled: bool = True,
        copy_values: bool = True,
        serializer: object = "msgpack",
        heartbeat: float = config.DEFAULT_HEARTBEAT,
        max_staleness: float = config.DEFAULT_MAX_STALENESS,
        on_disconnect: config.OnDisconnect = "bypass",
        stale_limit: float = config.DEFAULT_STALE_LIMIT,
        on_foreign: config.OnForeign = "raise",
        max_value_bytes: int = config.DEFAULT_MAX_VALUE_BYTES,
        compress: config.Compress | None = None,
        compress_above: int = config.DEFAULT_COMPRESS_ABOVE,
        schema: int = 0,
        timeout: float = config.DEFAULT_TIMEOUT,
        max_connections: int = config.DEFAULT_MAX_CONNECTIONS,
        log_length: int = config.DEFAULT_LOG_LENGTH,
        replay_limit: int = config.DEFAULT_REPLAY_LIMIT,
        lease: float = config.DEFAULT_LEASE,
        lease_wait: float = config.DEFAULT_LEASE_WAIT,
        instance_id: str | None = None,
    ) -> None:
        """Configure an instance. Nothing is connected yet.

        Args:
            url: ``redis://``, ``rediss://``, ``unix://`` as in redis-py; ``memory://name`` (inside this process, for
                tests); ``embedded://`` (a private redis-server, for development); or a synchronous client of redis-py
                or fakeredis, whose options are taken.
            namespace: instances with the same namespace form one coherent cache. 1 to 64 of ``A-Za-z0-9_.-``.
            shards: parts of the namespace, the same in all instances; more than one spreads a namespace's load.
            max_entries: most entries of the local tier.
            max_bytes: most estimated bytes of the local tier; None for no limit.
            policy: which entry goes when a limit is reached: ``lru``, ``lfu``, ``fifo`` or ``random``.
            ttl: seconds that values live in Redis unless a call says otherwise; None for ever.
            local_ttl: most seconds that values live in the local tier; never longer than what Redis has left.
            local_enabled: False for no local tier and no thread: a plain remote cache.
            copy_values: True: a caller may change what it got without changing the cache (immutable values are
                shared all the same). False: hits share one object, faster for containers.
            serializer: ``msgpack``, ``json``, ``pickle`` (opt-in: who can write to Redis can then run code here), or
                an object with ``dumps`` and ``loads``.
            heartbeat: seconds between proofs of freshness.
            max_staleness: seconds that local values are served without such a proof; at least three heartbeats.
            on_disconnect: what a read does past that: ``bypass`` (asks Redis), ``serve_stale`` (local values, for
                ``stale_limit`` seconds) or ``fail`` (raises :class:`NotCoherent`).
            stale_limit: seconds without proof that ``serve_stale`` goes on.
            on_foreign: what a read does on bytes that are not this package's: ``raise`` or ``miss``.
            max_value_bytes: largest encoded value, before compression; nothing is decompressed to more than that.
            compress: ``zlib`` or ``zstd`` (the extra of that name) compresses large values in Redis, None does not.
                Whatever is set here, compressed values are read; the local tier holds them as they were.
            compress_above: bytes of an encoded value above which it is compressed.
            schema: number of the values' schema, up to 65,535. Raise it when values change their form: entries of
                another schema count as absent, for reads, conditions and ``touch``; a write replaces them.
            timeout: seconds that one round trip or attempt to connect may take.
            max_connections: most connections for commands.
            log_length: invalidations that Redis keeps per shard, so that a short disconnection needs no flush.
            replay_limit: missed invalidations up to which a resync replays them; more flush the shard.
            lease: seconds after which another process loads in place of one that died loading; a loader that lives may
                take longer.
            lease_wait: seconds that a process waits for another one's loader before it loads for itself.
            instance_id: name of this instance in messages and log lines; default ``host-pid-random``.

        Raises:
            ConfigError: an option is unusable; names the option and what is allowed.
        """
        settings = Settings(
            namespace=namespace, shards=shards, max_entries=max_entries, max_bytes=max_bytes, policy=policy, ttl=ttl,
            local_ttl=local_ttl, local_enabled=local_enabled, copy_values=copy_values, heartbeat=heartbeat,
            max_staleness=max_staleness, on_disconnect=on_disconnect, stale_limit=stale_limit, on_foreign=on_foreign,
            max_value_bytes=max_value_bytes, compress=compress, compress_above=compress_above, schema=schema,
            timeout=timeout, max_connections=max_connections, log_length=log_length,
            replay_limit=replay_limit, lease=lease, lease_wait=lease_wait,
        )  # fmt: skip
        if instance_id is not None:
            check_instance_id(instance_id)
        codec = replace(make_codec(serializer, stacklevel=3), compressor=make_compressor(compress))
        endpoint = resolve(url, settings)
        self._settings = settings
        self._decode = codec.loads
        self._endpoint = endpoint
        self._callbacks: dict[int, Callable[[Event], None]] = {}
        callbacks, first_id = self._callbacks, instance_id or make_instance_id()
        forks = 0

        def make() -> Runtime:
            nonlocal forks
            name = (
                first_id
                if forks == 0
                else make_instance_id()
                if instance_id is None
                else f"{first_id}-{make_instance_id()}"
            )
            forks += 1
            return Runtime(settings, codec, endpoint, instance_id=name, callbacks=callbacks)

        adopt = weakref.WeakMethod(self._adopt)

        def on_replaced(runtime: Runtime) -> None:
            method = adopt()
            if method is not None:
                method(runtime)

        self._holder = RuntimeHolder(make, on_replaced)
        self._finalizer = weakref.finalize(self, _close_runtime, self._holder)

    def _adopt(self, runtime: Runtime) -> None:
        """Use a process' runtime. The local hit looks at one shard; with several, at one that never serves."""
        self._runtime = runtime
        shards = runtime.instance.shards
        self._shard = shards[0] if len(shards) == 1 else _NEVER
        self._counters = runtime.instance.counters

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
        found = self._read_one(key)
        return default if found is None or is_older(found.version, min_version) else found.value

    def get_entry(self, key: str) -> CacheEntry | None:
        """Return the value of a key with its version, tier and age, or None if there is none.

        Raises:
            As :meth:`get`.
        """
        shard = self._shard_of(key)
        # The horizon before the look-up, as for a hit (P4): a later one would vouch for an entry that it has outdated.
        epoch, horizon = shard.epoch, shard.tier.horizon
        entry = self._local_entry(key)
        # An entry belongs to the epoch that was there before and after the look-up; else ask Redis.
        if entry is not None and epoch is not None and epoch == shard.epoch:
            now, expires = clock(), entry.expires_at
            return CacheEntry(
                value=self._value(entry),
                version=Version(epoch, entry.seq),
                tier="local",
                expires_in=None if expires == inf else max(0.0, expires - now),
                age_bound=max(0.0, now - horizon),
            )
        found = self._read_one(key)
        if found is None:
            return None
        now = clock()
        return CacheEntry(
            value=found.value,
            version=found.version,
            tier="redis",
            expires_in=None if found.expires_at == inf else max(0.0, found.expires_at - now),
            age_bound=max(0.0, now - found.sent_at),
        )

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return the values of those keys that are there, by key: local ones, and the others in one round trip.

        Args:
            keys: keys; repeated ones count once.

        Raises:
            As :meth:`get`.
        """
        wanted = several(keys)
        found: dict[str, Any] = {}
        missing: list[str] = []
        tier = self._shard.tier
        if tier.valid_until >= (now := clock()):
            entries, decode = tier.entries, self._decode
            for key in wanted:
                entry = entries.get(key)
                if entry is None:
                    missing.append(key)
                elif now < entry.deadline:
                    tier.ticks = entry.used = tier.ticks + 1
                    found[key] = entry.value
                elif now < entry.coded_deadline:
                    tier.ticks = entry.used = tier.ticks + 1
                    found[key] = decode(entry.value)
                else:
                    missing.append(key)
        elif not self._settings.local_enabled:
            missing = wanted
        else:
            for key in wanted:
                entry = self._local_entry(key)
                if entry is None:
                    missing.append(key)
                else:
                    found[key] = self._value(entry)
        if missing:
            read = self._runtime.run(operations.read(self._runtime.instance, missing))
            self._counters.misses += len(missing)
            for key, hit in read.items():
                found[key] = hit[0]
        return found

    def warm(self, keys: Iterable[str]) -> int:
        """Load keys into the local tier, in one round trip per 1,000; return how many of them are in it afterwards.

        Waits until the instance is coherent, ``timeout`` seconds at most: before that nothing may be kept.

        Raises:
            As :meth:`get`.
        """
        wanted = several(keys)
        for key in wanted:
            check_key(key)
        self.wait_ready(self._settings.timeout)
        self.get_many(wanted)
        return sum(key in self._shard_of(key).tier.entries for key in wanted)

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
        if type(key) is not str:
            check_key(key)
        runtime = self._runtime
        ttl = self._settings.ttl if ttl is DEFAULT else self._ttl(ttl)
        condition = None if if_version is None else _condition(if_version)
        if wait is not None:
            write = partial(operations.store_one, runtime.instance, key, value, ttl=ttl, tags=tags, condition=condition)
            return self._acknowledged(wait, write)
        return runtime.run(operations.store_one(runtime.instance, key, value, ttl=ttl, tags=tags, condition=condition))

    def set_many(
        self, mapping: Mapping[str, Any], *, ttl: float | Default | None = DEFAULT, tags: Iterable[str] = ()
    ) -> dict[str, Version]:
        """Store several values, 1,000 per round trip and message; return their versions by key.

        Raises:
            As :meth:`set`; with ``CacheUnavailable``, ``applied_keys`` tells which were written all the same.
        """
        if not isinstance(mapping, Mapping):
            raise ConfigError("mapping", f"must be a mapping of keys to values, not {type(mapping).__name__}")
        return self._runtime.run(operations.store(self._runtime.instance, dict(mapping), ttl=self._ttl(ttl), tags=tags))

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
        instance, condition = self._runtime.instance, _condition(if_version)
        if wait is not None:
            return self._acknowledged(wait, partial(operations.delete, instance, (key,), condition=condition))
        return self._runtime.run(operations.delete(instance, (key,), condition=condition)) > 0

    def delete_many(self, keys: Iterable[str]) -> int:
        """Delete several values, 1,000 per round trip and message; return how many were there.

        Raises:
            As :meth:`delete`; with ``CacheUnavailable``, ``applied_keys`` tells which were deleted all the same.
        """
        return self._runtime.run(operations.delete(self._runtime.instance, several(keys)))

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
        return self._runtime.run(operations.touch(self._runtime.instance, key, self._ttl(ttl)))

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
        return self._runtime.run(
            operations.update(
                self._runtime.instance,
                key,
                fn,
                default=default,
                ttl=self._ttl(ttl),
                tags=tags,
                attempts=UPDATE_ATTEMPTS,
            )
        )

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
        return self._raise_floor(Kind.CLEAR, (), wait)

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
        return self._raise_floor(Kind.TAG, tags, wait)

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
        return self._local_entry(key) is not None or self._read_one(key) is not None

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

    # -- this instance ---------------------------------------------------------------------------------------------

    @property
    def instance_id(self) -> str:
        """Name of this instance in messages and log lines."""
        return self._runtime.instance_id

    @property
    def namespace(self) -> str:
        """The namespace."""
        return self._settings.namespace

    @property
    def server(self) -> str:
        """Where Redis is, for people: never with user or password."""
        note = self._endpoint.note
        return f"{self._endpoint.description} ({note})" if note else self._endpoint.description

    @property
    def state(self) -> str:
        """``connecting``, ``coherent``, ``suspect`` or ``disconnected`` (P5): the worst of the shards'.

        Always ``coherent`` with ``local_enabled=False``: every read asks Redis then.
        """
        return self._runtime.instance.state(clock()).value

    def staleness_bound(self) -> float:
        """Return how many seconds ago the value of a local hit may have ceased to be current, at most, right now.

        0.0 if no local value would be served: a read asks Redis, or raises.
        """
        now = clock()
        age = self._runtime.instance.horizon_age(now)
        return max(0.0, age) if age <= self._settings.longest_age else 0.0

    def stats(self) -> CacheStats:
        """Return a snapshot of the counters."""
        return self._runtime.instance.stats(clock())

    def clear_local(self) -> int:
        """Empty the local tier of this instance only; return how many entries went."""
        return self._runtime.instance.clear_local()

    def wait_ready(self, timeout: float = config.DEFAULT_MAX_STALENESS) -> bool:
        """Start, and wait until the instance is coherent; return whether it is, after ``timeout`` seconds at most.

        Raises:
            NamespaceMismatch: the namespace was created with another number of shards or another format.
            CacheUnavailable: the cache is closed.
        """
        instance = self._runtime.instance
        return self._runtime.wait(lambda: instance.state(clock()) is State.COHERENT, timeout)

    def on_event(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        """Call ``callback`` with every event from now on; return a function that ends that.

        It is called by whichever thread comes by, without any lock held, and should return soon. Its exceptions are
        logged and go no further. While there is a callback, events are also made per message.
        """
        token = id(callback) if id(callback) not in self._callbacks else max(self._callbacks) + 1
        self._callbacks[token] = callback
        self._runtime.instance.set_trace(True)
        return lambda: void(self._callbacks.pop(token, None))

    def close(self) -> None:
        """Stop the thread and close the connections; later calls that need Redis raise. Idempotent."""
        self._runtime.close()

    def __enter__(self) -> CoherentCache:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._runtime.closed else self.state
        return f"<CoherentCache {self.namespace!r} at {self._endpoint.description}: {state}>"

    # -- inside ----------------------------------------------------------------------------------------------------

    def _shard_of(self, key: str) -> Shard:
        return self._runtime.instance.shard_of(check_key(key))

    def _local_entry(self, key: str) -> Entry | None:
        """Look a key up locally, counting a hit; None if Redis must be asked. Removes what has expired."""
        shard = self._shard_of(key)
        tier = shard.tier
        valid_until = tier.valid_until
        now = clock()
        if valid_until < now:
            if not self._settings.local_enabled:
                return None
            # Never synchronised yet: reads ask Redis, whatever the policy says about a lost connection.
            if shard.state_at(now) is not State.DISCONNECTED or self._settings.on_disconnect == "bypass":
                return None
            age = now - tier.horizon
            if self._settings.on_disconnect == "fail":
                raise NotCoherent(age)
            if age > self._settings.stale_limit:
                return None
        entry = tier.entries.get(key)
        if entry is None:
            return None
        if entry.is_expired(now):
            shard.remove_expired(key, now)
            return None
        tier.ticks = entry.used = tier.ticks + 1
        return entry

    def _value(self, entry: Entry) -> Any:
        return entry.value if entry.deadline >= entry.coded_deadline else self._decode(entry.value)

    def _read_one(self, key: str) -> operations.Found | None:
        self._counters.misses += 1
        return self._runtime.run(operations.read_one(self._runtime.instance, key))

    def _raise_floor(self, kind: Kind, tags: Iterable[str], wait: float | None) -> Version | Acknowledgement:
        raise_floor = partial(operations.raise_floor, self._runtime.instance, kind, tags)
        return self._runtime.run(raise_floor()) if wait is None else self._acknowledged(wait, raise_floor)

    def _acknowledged(self, wait: float, write: Write) -> Acknowledgement:
        check_seconds("wait", wait)
        return self._runtime.run(acknowledge(self._runtime.instance, write, wait))

    def _ttl(self, ttl: float | Default | None) -> float | None:
        if isinstance(ttl, Default):
            return self._settings.ttl
        check_ttl("ttl", ttl)
        return ttl


def void(_: object) -> None:
    """Return nothing."""


def _condition(if_version: Version | Missing | None) -> Condition | None:
    if if_version is None:
        return None
    if if_version is MISSING:
        return Condition()
    if isinstance(if_version, Version):
        return Condition(if_version.epoch, if_version.seq)
    raise ConfigError("if_version", f"must be a Version, MISSING or None, not {type(if_version).__name__}")


def _close_runtime(holder: RuntimeHolder) -> None:
    holder.runtime.close()


_NEVER: Final = Shard(
    0,
    LocalTier(max_entries=1, rng=Random(0)),  # noqa: S311
    max_staleness=0,
    lock=nullcontext(),
    counters=Counters(),
    emit=void,
)
"""A shard that never serves: what the inlined hit looks at if there are several shards."""

__all__ = ["DEFAULT", "MISSING", "CacheEntry", "CacheUnavailable", "CoherentCache"]
