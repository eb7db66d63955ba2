"""What both fronts have in common: construction, state, the local tier, and which operations a call begins."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from random import Random
from typing import Any, Final, Literal

from coherent_cache import config
from coherent_cache.config import Settings, check_instance_id, check_seconds, check_ttl
from coherent_cache.core import operations
from coherent_cache.core.acknowledging import Acknowledgement, Write, acknowledge
from coherent_cache.core.entries import Entry
from coherent_cache.core.leasing import is_older
from coherent_cache.core.local_tier import LocalTier
from coherent_cache.core.operations import MISSING, Missing
from coherent_cache.core.requests import Condition, Operation
from coherent_cache.core.shard import Shard
from coherent_cache.core.states import State
from coherent_cache.core.stats import CacheStats, Counters
from coherent_cache.defaults import DEFAULT, Default
from coherent_cache.errors import ConfigError, InvalidKey, NotCoherent
from coherent_cache.events import Event
from coherent_cache.keys import check_key
from coherent_cache.remote.topology import Endpoint, resolve
from coherent_cache.runtime import Runtime, RuntimeHolder, Tracer, clock, make_instance_id
from coherent_cache.serializers import Codec, make_codec
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


class Front:
    """A cache without a way to run its operations."""

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
        log_keys: config.LogKeys = "plain",
        report: bool = True,
        instance_id: str | None = None,
    ) -> None:
        """Configure an instance. Nothing is connected yet.

        Args:
            url: ``redis://``, ``rediss://``, ``unix://`` as in redis-py; ``memory://name`` (inside this process, for
                tests); ``embedded://`` (a private redis-server, for development); or a client of redis-py or fakeredis,
                synchronous or asyncio's, whose options are taken.
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
            max_connections: most connections for commands of threads; an event loop has one.
            log_length: invalidations that Redis keeps per shard, so that a short disconnection needs no flush.
            replay_limit: missed invalidations up to which a resync replays them; more flush the shard.
            lease: seconds after which another process loads in place of one that died loading; a loader that lives may
                take longer.
            lease_wait: seconds that a process waits for another one's loader before it loads for itself.
            log_keys: keys and tags in log lines: ``plain``, ``hash`` (the same in all instances) or ``redact``;
                callbacks of ``on_event`` get them plain.
            report: whether this instance reports itself every other heartbeat and answers operators' questions
                (``top``, ``audit``, ``explain``). Without a local tier it never does.
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
            replay_limit=replay_limit, lease=lease, lease_wait=lease_wait, log_keys=log_keys, report=report,
        )  # fmt: skip
        if instance_id is not None:
            check_instance_id(instance_id)
        codec = replace(make_codec(serializer, stacklevel=3), compressor=make_compressor(compress))
        endpoint = resolve(url, settings)
        first_id = instance_id or make_instance_id()
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

        callbacks: dict[int, Callable[[Event], None]] = {}
        self._share(RuntimeHolder(make, callbacks), settings, codec, endpoint)

    def _share(self, holder: RuntimeHolder, settings: Settings, codec: Codec, endpoint: Endpoint) -> None:
        """Work on a core, with others perhaps: it is closed when the last of them is gone."""
        self._holder = holder
        self._settings = settings
        self._codec = codec
        self._decode = codec.loads
        self._endpoint = endpoint
        self._callbacks = holder.callbacks
        holder.attach(weakref.WeakMethod(self._adopt))

    def _adopt(self, runtime: Runtime) -> None:
        """Use a process' runtime. The local hit looks at one shard; with several, at one that never serves."""
        self._runtime = runtime
        shards = runtime.instance.shards
        self._shard = shards[0] if len(shards) == 1 else _NEVER
        self._counters = runtime.instance.counters

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
        return self._runtime.server

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

    def on_event(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        """Call ``callback`` with every event from now on; return a function that ends that.

        It is called by whichever thread comes by, without any lock held, and should return soon. Its exceptions are
        logged and go no further. While there is a callback, events are also made per message.
        """
        token = id(callback) if id(callback) not in self._callbacks else max(self._callbacks) + 1
        self._callbacks[token] = callback
        self._runtime.instance.set_trace(True)
        return lambda: void(self._callbacks.pop(token, None))

    def set_tracer(self, tracer: Tracer | None) -> None:
        """Have ``tracer`` told of each round trip to Redis, loader call and wait, not of local hits; None ends that.

        It is called in the thread or task that does it, with this instance's id and the requests, and returns a context
        manager that is entered around the answering. What that raises is taken for a failure of the answering.
        ``coherent_cache.telemetry.opentelemetry.instrument`` sets one.

        Raises:
            ConfigError: there is another one.
        """
        if tracer is not None and self._runtime.tracer is not None:
            raise ConfigError("tracer", "is set already; end that one first")
        self._runtime.tracer = tracer

    def __repr__(self) -> str:
        state = "closed" if self._runtime.closed else self.state
        return f"<{type(self).__name__} {self.namespace!r} at {self._endpoint.description}: {state}>"

    # -- the local tier ----------------------------------------------------------------------------------------------

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

    def _fresh_entry(self, key: str, max_staleness: float | None, min_version: Version | None) -> Entry | None:
        """As ``_local_entry``, for a reader who wants less staleness, or a version that it has seen elsewhere."""
        if max_staleness is None and min_version is None:
            return self._local_entry(key)
        check_reading(max_staleness, min_version)
        shard = self._shard_of(key)
        # The horizon before the look-up (P4).
        if max_staleness is not None and clock() - shard.tier.horizon > max_staleness:
            return None
        if min_version is None:
            return self._local_entry(key)
        # Only an entry of its own epoch can be compared; Redis knows whether that has passed (P9).
        held = shard.tier.entries.get(key)
        if held is None or shard.epoch != min_version.epoch or held.seq < min_version.seq:
            return None
        entry = self._local_entry(key)
        return entry if shard.epoch == min_version.epoch else None

    def _look_up(self, wanted: list[str]) -> tuple[dict[str, Any], list[str]]:
        """Return the values of those keys that are here, and the other keys."""
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
        return found, missing

    def _local_cache_entry(self, key: str) -> CacheEntry | None:
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
        return None

    def _to_warm(self, keys: Iterable[str]) -> list[str]:
        wanted = several(keys)
        for key in wanted:
            check_key(key)
        return wanted

    def _held(self, keys: Iterable[str]) -> int:
        return sum(key in self._shard_of(key).tier.entries for key in keys)

    def _is_coherent(self) -> bool:
        return self._runtime.instance.state(clock()) is State.COHERENT

    # -- operations that calls begin -----------------------------------------------------------------------------------

    def _read(self, key: str) -> Operation[operations.Found | None]:
        self._counters.misses += 1
        return operations.read_one(self._runtime.instance, key)

    def _read_value(self, key: str, default: Any, min_version: Version | None) -> Operation[Any]:
        found = yield from self._read(key)
        return default if found is None or is_older(found.version, min_version) else found.value

    def _read_entry(self, key: str) -> Operation[CacheEntry | None]:
        found = yield from self._read(key)
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

    def _read_many(self, missing: list[str]) -> Operation[dict[str, Any]]:
        self._counters.misses += len(missing)
        return operations.read(self._runtime.instance, missing)

    def _set(
        self,
        key: str,
        value: Any,
        ttl: float | Default | None,
        tags: Iterable[str],
        if_version: Version | Missing | None,
        wait: float | None,
    ) -> Operation[Any]:
        if type(key) is not str:
            check_key(key)
        instance = self._runtime.instance
        ttl = self._settings.ttl if ttl is DEFAULT else self._ttl(ttl)
        condition = None if if_version is None else _condition(if_version)
        if wait is not None:
            write = partial(operations.store_one, instance, key, value, ttl=ttl, tags=tags, condition=condition)
            return self._acknowledged(wait, write)
        return operations.store_one(instance, key, value, ttl=ttl, tags=tags, condition=condition)

    def _set_many(
        self, mapping: Mapping[str, Any], ttl: float | Default | None, tags: Iterable[str]
    ) -> Operation[dict[str, Version]]:
        if not isinstance(mapping, Mapping):
            raise ConfigError("mapping", f"must be a mapping of keys to values, not {type(mapping).__name__}")
        return operations.store(self._runtime.instance, dict(mapping), ttl=self._ttl(ttl), tags=tags)

    def _delete(self, key: str, if_version: Version | None, wait: float | None) -> Operation[Any]:
        instance, condition = self._runtime.instance, _condition(if_version)
        if wait is not None:
            return self._acknowledged(wait, partial(operations.delete, instance, (key,), condition=condition))
        return _any(operations.delete(instance, (key,), condition=condition))

    def _delete_many(self, keys: Iterable[str]) -> Operation[int]:
        return operations.delete(self._runtime.instance, several(keys))

    def _touch(self, key: str, ttl: float | Default | None) -> Operation[bool]:
        return operations.touch(self._runtime.instance, key, self._ttl(ttl))

    def _update(
        self, key: str, fn: Callable[[Any], Any], default: Any, ttl: float | Default | None, tags: Iterable[str]
    ) -> Operation[Any]:
        instance, ttl = self._runtime.instance, self._ttl(ttl)
        return operations.update(instance, key, fn, default=default, ttl=ttl, tags=tags, attempts=UPDATE_ATTEMPTS)

    def _raise_floor(self, kind: Kind, tags: Iterable[str], wait: float | None) -> Operation[Any]:
        raise_floor = partial(operations.raise_floor, self._runtime.instance, kind, tags)
        return raise_floor() if wait is None else self._acknowledged(wait, raise_floor)

    def _acknowledged(self, wait: float, write: Write) -> Operation[Acknowledgement]:
        check_seconds("wait", wait)
        return acknowledge(self._runtime.instance, write, wait)

    def _ttl(self, ttl: float | Default | None) -> float | None:
        if isinstance(ttl, Default):
            return self._settings.ttl
        check_ttl("ttl", ttl)
        return ttl


def check_reading(max_staleness: object, min_version: object) -> None:
    """Check what a reader wants.

    Raises:
        ConfigError: it cannot be.
    """
    check_seconds("max_staleness", max_staleness, 0.0)
    if min_version is not None and not isinstance(min_version, Version):
        raise ConfigError("min_version", f"must be a Version or None, not {type(min_version).__name__}")


def several(keys: Iterable[str]) -> list[str]:
    """Return keys once each, in their order.

    Raises:
        ConfigError: it is no collection of keys.
        InvalidKey: one of them is not even hashable.
    """
    if isinstance(keys, str | bytes):
        raise ConfigError("keys", f"must be a collection of str, not one {type(keys).__name__}: write [{keys!r}]")
    if not isinstance(keys, list | tuple):
        try:
            keys = list(keys)
        except TypeError:
            raise ConfigError("keys", f"must be a collection of str, not {type(keys).__name__}") from None
    try:
        return list(dict.fromkeys(keys))
    except TypeError:
        raise InvalidKey("a key must be a str; one of these is not even hashable") from None


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


def _any(deleting: Operation[int]) -> Operation[bool]:
    return (yield from deleting) > 0


_NEVER: Final = Shard(
    0,
    LocalTier(max_entries=1, rng=Random(0)),  # noqa: S311
    max_staleness=0,
    lock=nullcontext(),
    counters=Counters(),
    emit=void,
)
"""A shard that never serves: what the inlined hit looks at if there are several shards."""
