"""One instance: its shards, settings, codec and counters; what the operations work on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import lru_cache
from random import Random
from typing import Any, Final

from coherent_cache.config import Settings
from coherent_cache.core.entries import ENTRY_OVERHEAD_BYTES, Entry, RemovalCause, TierCounts, make_entry
from coherent_cache.core.local_tier import LocalTier
from coherent_cache.core.shard import RemoteShard, Shard
from coherent_cache.core.states import State, worst
from coherent_cache.core.stats import CacheStats, Counters
from coherent_cache.core.waiting import Flights
from coherent_cache.errors import ForeignValue
from coherent_cache.events import Event, ForeignValueSeen
from coherent_cache.keys import check_key, key_digest, shard_of
from coherent_cache.serializers import CODE_CUSTOM, IMMUTABLE_SCALARS, Codec, is_immutable
from coherent_cache.wire import UnknownFormat, WireError, envelope_prefix

KeyFacts = tuple[bytes, bytes]
"""A user key in UTF-8, and the prefix of its envelopes in this instance's codec and schema."""

CACHED_KEYS: Final = 8192
"""Keys whose facts are remembered."""


class Instance:
    """One instance of a namespace in one process.

    Attributes:
        settings: its settings.
        codec: values to payloads and back.
        shards: one per shard of the namespace.
        facts: returns a key's facts, or raises InvalidKey (TypeError if the key is not even hashable).
        counters: see :class:`coherent_cache.core.stats.Counters`.
        flights: the loads under way in this process (P11).
        instance_id: its name in messages and log lines.
        member: its name among the members (P12): two instances may have one id.
        rng: for jitter and the tokens of leases.
        emit: takes events; must not block.
    """

    def __init__(
        self,
        settings: Settings,
        codec: Codec,
        *,
        instance_id: str,
        member: str = "",
        lock: Callable[[], AbstractContextManager[object]],
        rng: Random,
        emit: Callable[[Event], None],
    ) -> None:
        """Make an instance that knows nothing yet.

        Args:
            settings: its settings.
            codec: its codec.
            instance_id: its name.
            member: its name among the members; empty if no other instance has this id.
            lock: makes a shard's lock, see :class:`coherent_cache.core.shard.Shard`.
            rng: for random replacement, jitter and the tokens of leases.
            emit: takes events; must not block.
        """
        self.settings = settings
        self.codec = codec
        self.instance_id = instance_id
        self.member = member or instance_id
        self.emit = emit
        self.counters = Counters()
        self.rng = rng
        self.flights = Flights(lock())
        self._share_all = not settings.copy_values
        self.keeps_values = not settings.local_enabled or (settings.copy_values and codec.code != CODE_CUSTOM)
        """Whether a value that is written may itself go into an entry, or goes nowhere."""
        self.facts = lru_cache(maxsize=CACHED_KEYS)(self._facts)
        self.shards = tuple(
            (Shard if settings.local_enabled else RemoteShard)(
                index,
                self._make_tier(index, rng),
                max_staleness=settings.max_staleness,
                lock=lock(),
                counters=self.counters,
                emit=emit,
            )
            for index in range(settings.shards)
        )

    def _make_tier(self, index: int, rng: Random) -> LocalTier:
        settings = self.settings
        return LocalTier(
            policy=settings.policy,
            max_entries=_share(settings.max_entries, settings.shards, index),
            max_bytes=None if settings.max_bytes is None else _share(settings.max_bytes, settings.shards, index),
            rng=rng,
            counts=TierCounts(),
        )

    def _facts(self, key: str) -> KeyFacts:
        encoded = check_key(key)
        return encoded, envelope_prefix(key_digest(encoded), self.codec.code, self.settings.schema)

    # -- keys and values -------------------------------------------------------------------------------------------

    def shard_of(self, key: bytes) -> Shard:
        """Shard of a key given in UTF-8."""
        return self.shards[shard_of(key, len(self.shards))]

    def unreadable(self, key: str, facts: KeyFacts, error: WireError, now: float) -> None:
        """Report bytes that are no value; return None if they are to be a miss, as those of a newer release always are.

        Raises:
            ForeignValue: if ``on_foreign="raise"``.
        """
        if isinstance(error, UnknownFormat):
            self.shard_of(facts[0]).note_unknown("value", str(error), now)
        else:
            self.foreign(key, str(error))

    def foreign(self, key: str, reason: str) -> None:
        """Report a foreign value; return None if ``on_foreign="miss"``.

        Raises:
            ForeignValue: if ``on_foreign="raise"``.
        """
        self.counters.errors += 1
        self.emit(ForeignValueSeen(key, reason))
        if self.settings.on_foreign == "raise":
            raise ForeignValue(key, reason)

    def make_entry(
        self, facts: KeyFacts, value: Any, payload: bytes, seq: int, tags: tuple[str, ...], expires_at: float
    ) -> Entry:
        """Make a local entry: the value itself where it may be shared, else its payload (``copy_values``).

        Args:
            facts: the key.
            value: the value, decoded from ``payload``, so that no caller holds the same object.
            payload: the value in this instance's own codec, not compressed.
            seq: version.
            tags: tags.
            expires_at: local expiry in seconds of the local clock.
        """
        shared = self._share_all or type(value) in IMMUTABLE_SCALARS or is_immutable(value)
        size = len(facts[0]) + len(payload) + ENTRY_OVERHEAD_BYTES
        return make_entry(value if shared else payload, seq, size, expires_at, shared, tags)

    # -- what users ask --------------------------------------------------------------------------------------------

    def state(self, now: float) -> State:
        """Worst state of the shards; without a local tier, ``coherent``: every read asks Redis."""
        if not self.settings.local_enabled:
            return State.COHERENT
        return worst([shard.state_at(now) for shard in self.shards])

    def horizon_age(self, now: float) -> float:
        """Seconds since the oldest shard's last proof of freshness; ``inf`` if there is none."""
        return max(now - shard.tier.horizon for shard in self.shards)

    def clear_local(self) -> int:
        """Empty the local tier; return how many entries went."""
        return sum(shard.clear_local() for shard in self.shards)

    def wake_all(self) -> None:
        """Wake who waits for other instances' loads."""
        for shard in self.shards:
            shard.wake_all()

    def set_trace(self, enabled: bool) -> None:  # noqa: FBT001
        """Switch the events that come per message or refused fill on or off."""
        for shard in self.shards:
            shard.trace = enabled

    def stats(self, now: float) -> CacheStats:
        """Return a snapshot of the counters."""
        counters = self.counters
        tiers = [shard.tier for shard in self.shards]
        removals = {cause: sum(tier.counts.removed[cause] for tier in tiers) for cause in RemovalCause}
        hits = sum(tier.hits for tier in tiers)
        total = hits + counters.misses
        lags = [shard.lag for shard in self.shards]
        streams = self.shards if self.settings.local_enabled else ()
        return CacheStats(
            enabled=self.settings.local_enabled,
            size=sum(map(len, tiers)),
            max_entries=self.settings.max_entries,
            bytes=sum(tier.bytes for tier in tiers),
            hits=hits,
            misses=counters.misses,
            hit_rate=hits / total if total else 0.0,
            total_requests=total,
            redis_hits=counters.redis_hits,
            loads=counters.loads,
            load_failures=counters.load_failures,
            stale_served=counters.stale_served,
            evictions=removals[RemovalCause.SIZE],
            expirations=removals[RemovalCause.EXPIRED],
            removals={cause.value: count for cause, count in removals.items()},
            invalidations_received=counters.received,
            invalidations_applied=counters.applied,
            invalidations_ignored=counters.received - counters.applied,
            fills_refused=counters.fills_refused,
            resyncs=counters.resyncs,
            replays=counters.replays,
            flushes=counters.flushes,
            errors=counters.errors,
            propagation_p50=_worst_percentile([lag.percentile(0.50) for lag in lags]),
            propagation_p99=_worst_percentile([lag.percentile(0.99) for lag in lags]),
            propagation_counts=tuple(map(sum, zip(*(lag.counts for lag in lags), strict=True))),
            propagation_sum=sum(lag.total for lag in lags),
            state=self.state(now).value,
            horizon_age=self.horizon_age(now),
            shard_states=tuple(shard.state_at(now).value for shard in streams),
            shard_horizon_ages=tuple(now - shard.tier.horizon for shard in streams),
        )


def _share(total: int, parts: int, index: int) -> int:
    return total // parts + (index < total % parts)


def _worst_percentile(values: list[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
