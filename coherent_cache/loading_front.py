"""What both fronts have in common to load what is not there: ``get_or_set`` and its kin (rule P11)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf
from typing import Any, Final, Literal, NamedTuple, TypedDict

from coherent_cache.core import loading, loading_many
from coherent_cache.core.entries import Entry
from coherent_cache.core.leasing import Result
from coherent_cache.core.load_options import LoadContext, LoadOptions
from coherent_cache.core.loading import LoadCall
from coherent_cache.core.operations import MISSING
from coherent_cache.core.requests import Operation
from coherent_cache.defaults import DEFAULT, Default
from coherent_cache.errors import ConfigError
from coherent_cache.front import Front, check_reading
from coherent_cache.runtime import clock
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
    """The options of a load, as keywords. See :meth:`CoherentCache.get_or_set`."""

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
    """The options of :meth:`CoherentCache.get_or_set`."""

    default: Any


OF_LOADS: Final = frozenset(GetOrSetKeywords.__annotations__) - {
    "skip_local", "max_staleness", "min_version", "fail_safe", "refresh_ahead",
}  # fmt: skip
"""Options that do not matter for a local hit."""


class Wish(NamedTuple):
    """What a caller of ``get_or_set`` wants, checked.

    Attributes:
        key: user key.
        loader: the loader, as it was given.
        options: of the load.
        skip_local: do not read from the local tier.
        max_staleness: as for ``get``.
        min_version: as for ``get``.
    """

    key: str
    loader: Callable[..., Any]
    options: LoadOptions
    skip_local: bool
    max_staleness: float | None
    min_version: Version | None


class LoadingFront(Front, ABC):
    """Loads over a runtime, its shards and its settings."""

    @abstractmethod
    def _spawn(self, operation: Operation[Any]) -> bool:
        """Run an operation in the background; False if that cannot be."""

    @abstractmethod
    def _home(self) -> object:
        """Return what its flights belong to: see :class:`coherent_cache.core.waiting.Flight`."""

    @abstractmethod
    def _loader(self, loader: Callable[..., Any]) -> Callable[[LoadContext], Any]:
        """Return a caller's loader as the core calls it: with a context in any case.

        Raises:
            ConfigError: it is no loader.
        """

    def _wish(self, key: str, loader: Callable[..., Any], options: LoadKeywords) -> Wish:
        """Check what a caller wants; the key and the loader where they are used."""
        skip_local = options.pop("skip_local", False)
        max_staleness, min_version = options.pop("max_staleness", None), options.pop("min_version", None)
        if skip_local:  # else they are checked where the local tier is read
            check_reading(max_staleness, min_version)
        return Wish(key, loader, self._options(options), skip_local, max_staleness, min_version)

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

    def _here(self, wish: Wish) -> Entry | None:
        """Look locally, counting a hit, and tend what is there."""
        if wish.skip_local:
            return None
        entry = self._fresh_entry(wish.key, wish.max_staleness, wish.min_version)
        if entry is not None:
            self._tend(wish, entry)
        return entry

    def _load(self, wish: Wish) -> Operation[Entry | Result]:
        """Begin to find in Redis what is not here, or to load it."""
        self._shard_of(wish.key)  # checks the key
        return self._find(wish, self._call(wish))

    def _call(self, wish: Wish) -> LoadCall:
        return LoadCall(wish.key, self._loader(wish.loader), wish.options, clock(), wish.min_version, self._home())

    def _find(self, wish: Wish, call: LoadCall) -> Operation[Entry | Result]:
        """Read or load; look again as often as others have loaded it."""
        instance, options, key = self._runtime.instance, wish.options, wish.key
        self._counters.misses += 1
        if options.fail_safe is not None:
            throttled = loading.throttled(instance, call)
            if throttled is not None:
                return throttled
        while True:
            result = yield from loading.get_or_set(instance, call)
            if result is None:
                entry = self._here(wish)
                if entry is not None:
                    return entry
                continue
            if options.fail_safe is not None and result.tier != "stale":
                self._shard_of(key).keep(key, options.fail_safe, clock())
            if result.tier == "redis" and result.version is not None:
                self._refresh(wish, result.version.seq, result.expires_at)
            return result

    def _loaded_value(self, found: Entry | Result, default: Any) -> Any:
        value = self._value(found) if isinstance(found, Entry) else found.value
        return default if value is MISSING else value

    def _load_entry(self, wish: Wish) -> Operation[LoadResult]:
        """Find a value here or there, or load it, and tell all that is known about it."""
        shard = self._shard_of(wish.key)
        tier: Tier
        while True:
            epoch = shard.epoch
            found = self._here(wish) or (yield from self._load(wish))
            if not isinstance(found, Entry):
                value, version, expires_at, tier = found
                break
            # An entry belongs to the epoch that was there before and after the look-up; else look again.
            if epoch is not None and epoch == shard.epoch:
                value, version = self._value(found), Version(epoch, found.seq)
                expires_at, tier = found.expires_at, "local"
                break
        return LoadResult(value, version, tier, None if expires_at == inf else max(0.0, expires_at - clock()))

    def _load_many(
        self, missing: list[str], loader: Callable[[list[str]], Any], options: LoadOptions
    ) -> Operation[dict[str, Any]]:
        self._counters.misses += len(missing)
        return loading_many.get_or_set_many(self._runtime.instance, missing, loader, options, self._home())

    def _options_of_many(
        self,
        loader: object,
        ttl: float | Default | None,
        tags: Iterable[str],
        jitter: float | None,
        negative_ttl: float | None,
    ) -> LoadOptions:
        if not callable(loader):
            raise ConfigError("loader", f"must be callable, not {type(loader).__name__}")
        return self._options({"ttl": ttl, "tags": tags, "jitter": jitter, "negative_ttl": negative_ttl})

    def _tend(self, wish: Wish, entry: Entry) -> None:
        """After a local hit: keep the value as the last known one, refresh it before its time is over."""
        if wish.options.fail_safe is not None:
            shard = self._shard_of(wish.key)
            kept = shard.kept.entries.get(wish.key)
            if kept is None or kept.seq != entry.seq:
                shard.keep(wish.key, wish.options.fail_safe, clock())
        # With a local_ttl the entry does not tell when Redis forgets it; the next read from there does.
        if self._settings.local_ttl is None:
            self._refresh(wish, entry.seq, entry.expires_at)

    def _refresh(self, wish: Wish, seq: int, expires_at: float) -> None:
        """Load a value anew in the background if its time is nearly over."""
        window = wish.options.refresh_window
        now = clock()
        if window == 0.0 or expires_at - now >= window:
            return
        instance = self._runtime.instance
        if instance.flights.claim_refresh(wish.key, now):
            operation = loading.refresh(instance, self._call(wish), seq)
            if not self._spawn(operation):
                operation.close()
                instance.flights.end_refresh(wish.key, now + wish.options.throttle)
