"""The part of the synchronous front that loads what is not there: ``get_or_set`` and its kin (rule P11)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, Final, Literal, NamedTuple, TypedDict, Unpack

from coherent_cache.config import Settings, check_seconds
from coherent_cache.core import loading, loading_many
from coherent_cache.core.entries import Entry
from coherent_cache.core.leasing import Result
from coherent_cache.core.load_options import LoadOptions, with_context
from coherent_cache.core.loading import LoadCall
from coherent_cache.core.operations import MISSING
from coherent_cache.core.shard import Shard
from coherent_cache.core.stats import Counters
from coherent_cache.defaults import DEFAULT, Default
from coherent_cache.errors import ConfigError, InvalidKey
from coherent_cache.runtime import Runtime, clock
from coherent_cache.versions import Version

Tier = Literal["local", "redis", "loader", "stale"]


@dataclass(frozen=True, slots=True)
class LoadResult:
    """A value with what is known about it after :meth:`CoherentCache.get_or_set_entry`.

    Attributes:
        value: the value.
        version: its version; None if it is not stored, or another thread has loaded it.
        tier: where it came from: ``local``, ``redis``, ``loader``, or ``stale`` for a last known value.
        expires_in: seconds until it expires there; None if never, or if it is not known. Of a last known value: until
            it is not served any more.
    """

    value: Any
    version: Version | None
    tier: Tier
    expires_in: float | None

    @property
    def stale(self) -> bool:
        """Whether it is served beyond its time, because it could not be loaded (``fail_safe``)."""
        return self.tier == "stale"


class LoadKeywords(TypedDict, total=False):
    """The options of a load, as keywords. See :meth:`LoadingFront.get_or_set`."""

    ttl: float | Default | None
    tags: Iterable[str]
    jitter: float | None
    negative_ttl: float | None
    fail_safe: float | None
    throttle: float
    error_ttl: float | None
    soft_timeout: float | None
    hard_timeout: float | None
    refresh_ahead: float | None
    skip_local: bool
    max_staleness: float | None
    min_version: Version | None


class GetOrSetKeywords(LoadKeywords, total=False):
    """The options of :meth:`LoadingFront.get_or_set`."""

    default: Any


_OF_LOADS: Final = frozenset(GetOrSetKeywords.__annotations__) - {
    "skip_local", "max_staleness", "min_version", "fail_safe", "refresh_ahead",
}  # fmt: skip
"""Options that do not matter for a local hit."""


class LoadingFront(ABC):
    """``get_or_set`` over a runtime, its shard and its settings."""

    _settings: Settings
    _runtime: Runtime
    _shard: Shard
    _counters: Counters
    _decode: Callable[[bytes], Any]

    @abstractmethod
    def _shard_of(self, key: str) -> Shard:
        """Return the shard of a key."""

    @abstractmethod
    def _local_entry(self, key: str) -> Entry | None:
        """Look a key up locally, counting a hit; None if Redis must be asked."""

    @abstractmethod
    def _value(self, entry: Entry) -> Any:
        """Return a local entry's value."""

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
        if not options or options.keys() <= _OF_LOADS:
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
        found = self._find(key, loader, options)
        value = self._value(found) if isinstance(found, Entry) else found.value
        return default if value is MISSING else value

    def get_or_set_entry(self, key: str, loader: Callable[..., Any], **options: Unpack[LoadKeywords]) -> LoadResult:
        """As :meth:`get_or_set`, but return the value with its version, where it came from, and whether it is stale.

        It has no ``default``: the value of "no such thing" is ``MISSING``.
        """
        shard = self._shard_of(key)
        tier: Tier
        while True:
            epoch = shard.epoch
            found = self._find(key, loader, options.copy())
            if not isinstance(found, Entry):
                value, version, expires_at, tier = found
                break
            # An entry belongs to the epoch that was there before and after the look-up; else look again.
            if epoch is not None and epoch == shard.epoch:
                value, version = self._value(found), Version(epoch, found.seq)
                expires_at, tier = found.expires_at, "local"
                break
        return LoadResult(value, version, tier, None if expires_at == inf else max(0.0, expires_at - clock()))

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
        if not callable(loader):
            raise ConfigError("loader", f"must be callable, not {type(loader).__name__}")
        options = self._options({"ttl": ttl, "tags": tags, "jitter": jitter, "negative_ttl": negative_ttl})
        wanted = several(keys)
        found: dict[str, Any] = {}
        missing: list[str] = []
        for key in wanted:
            entry = self._local_entry(key)
            if entry is None:
                missing.append(key)
            else:
                found[key] = self._value(entry)
        if missing:
            self._counters.misses += len(missing)
            loaded = self._runtime.run(loading_many.get_or_set_many(self._runtime.instance, missing, loader, options))
            found.update((key, value) for key, value in loaded.items() if value is not MISSING)
        return {key: found[key] for key in wanted if key in found}

    # -- inside ----------------------------------------------------------------------------------------------------

    def _find(self, key: str, loader: Callable[..., Any], options: LoadKeywords) -> Entry | Result:
        reading = _Reading(
            options.pop("skip_local", False), options.pop("max_staleness", None), options.pop("min_version", None)
        )
        if reading.skip_local:  # else they are checked where the local tier is read
            check_reading(reading.max_staleness, reading.min_version)
        return self._load(key, loader, self._options(options), reading)

    def _options(self, given: LoadKeywords) -> LoadOptions:
        """Check options.

        Raises:
            ConfigError: one of them cannot be.
            TypeError: one of them is none.
        """
        unknown = given.keys() - LoadKeywords.__annotations__.keys()
        if unknown:
            known = ", ".join(LoadKeywords.__annotations__)
            raise TypeError(f"{min(unknown)!r} is no option of a load; there are {known}")
        ttl = given.get("ttl", DEFAULT)
        chosen: dict[str, Any] = dict(given) | {"ttl": self._settings.ttl if isinstance(ttl, Default) else ttl}
        options = LoadOptions(**chosen)
        if options.fail_safe is not None and not self._settings.local_enabled:
            raise ConfigError("fail_safe", "keeps values in the local tier, and local_enabled is False")
        return options

    def _load(self, key: str, loader: Callable[..., Any], options: LoadOptions, reading: _Reading) -> Entry | Result:
        """Find a value locally or in Redis, or load it; look again as often as others have loaded it."""
        call: LoadCall | None = None
        while True:
            entry = None if reading.skip_local else self._fresh_entry(key, reading.max_staleness, reading.min_version)
            if entry is not None:
                self._tend(key, loader, options, entry)
                return entry
            if call is None:
                self._shard_of(key)  # checks the key
                call = LoadCall(key, with_context(loader), options, clock(), reading.min_version)
                self._counters.misses += 1
                if options.fail_safe is not None:
                    throttled = loading.throttled(self._runtime.instance, call)
                    if throttled is not None:
                        return throttled
            result = self._runtime.run(loading.get_or_set(self._runtime.instance, call))
            if result is None:
                continue
            if options.fail_safe is not None and result.tier != "stale":
                self._shard_of(key).keep(key, options.fail_safe, clock())
            if result.tier == "redis" and result.version is not None:
                self._refresh(key, loader, options, result.version.seq, result.expires_at)
            return result

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

    def _tend(self, key: str, loader: Callable[..., Any], options: LoadOptions, entry: Entry) -> None:
        """After a local hit: keep the value as the last known one, refresh it before its time is over."""
        if options.fail_safe is not None:
            shard = self._shard_of(key)
            kept = shard.kept.entries.get(key)
            if kept is None or kept.seq != entry.seq:
                shard.keep(key, options.fail_safe, clock())
        # With a local_ttl the entry does not tell when Redis forgets it; the next read from there does.
        if self._settings.local_ttl is None:
            self._refresh(key, loader, options, entry.seq, entry.expires_at)

    def _refresh(self, key: str, loader: Callable[..., Any], options: LoadOptions, seq: int, expires_at: float) -> None:
        """Load a value anew in the background if its time is nearly over."""
        window = options.refresh_window
        now = clock()
        if window == 0.0 or expires_at - now >= window:
            return
        instance = self._runtime.instance
        if instance.flights.claim_refresh(key, now):
            operation = loading.refresh(instance, LoadCall(key, with_context(loader), options, now), seq)
            if not self._runtime.spawn(operation):
                operation.close()
                instance.flights.end_refresh(key, now + options.throttle)


class _Reading(NamedTuple):
    """What a caller says about reading."""

    skip_local: bool
    max_staleness: float | None
    min_version: Version | None


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
