"""Counters of one instance, the propagation meter, and the snapshot that users get."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol

LAG_SAMPLES: Final = 1024
"""Latest propagation delays that percentiles are made of."""

LAG_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper bounds, in seconds, of the classes that propagation delays are counted in; what is longer is counted last."""

OFFSET_SAMPLES: Final = 16
"""Latest clock comparisons of which the one with the shortest round trip counts (as NTP does)."""


class Lookups(Protocol):
    """What follows from how many keys were served from local tiers (``hits``), and how many were not (``misses``)."""

    __slots__ = ()

    @property
    def hits(self) -> int:
        """Keys served from local tiers."""

    @property
    def misses(self) -> int:
        """Keys that were asked for and not served from a local tier."""

    @property
    def requests(self) -> int:
        """Keys that were asked for."""
        return self.hits + self.misses

    @property
    def hit_rate(self) -> float:
        """``hits / requests``, 0.0 if there were none."""
        return self.hits / self.requests if self.requests else 0.0


@dataclass(frozen=True, slots=True)
class CacheStats:
    """A snapshot of one instance's counters since it was made (or since its process was forked).

    Attributes:
        enabled: whether there is a local tier.
        size: entries in the local tier now.
        max_entries: most entries that it may hold.
        bytes: estimated bytes that it holds now.
        hits: keys served from the local tier.
        misses: keys that were asked for and not served from the local tier.
        hit_rate: ``hits / total_requests``, 0.0 if there were none.
        total_requests: keys that were asked for; ``hits + misses``.
        redis_hits: misses that Redis had a value for.
        loads: loader calls.
        load_failures: loader calls that raised, or whose value could not be encoded.
        stale_served: values served beyond their time, because loading failed or took too long (``fail_safe``).
        evictions: local entries removed because a limit was reached.
        expirations: local entries removed because their time was over.
        removals: local entries removed, by cause.
        invalidations_received: messages received.
        invalidations_applied: messages that concerned an entry held, or a command under way, here.
        invalidations_ignored: messages that concerned neither.
        fills_refused: values that were returned but not kept, because they may be outdated (P7).
        resyncs: completed resyncs, the first one included (P6).
        replays: missed messages that were applied from the log.
        flushes: resyncs, lost histories and damaged messages that emptied a shard's local tier.
        errors: commands that failed, and faults that the subscriber survived.
        propagation_p50: median seconds from a write's execution in Redis to its application here; None if unknown.
        propagation_p99: the same, 99th percentile.
        propagation_counts: messages per class of delay: above one and up to the next of ``LAG_BUCKETS``, and a last
            number for those above all of them.
        propagation_sum: seconds that all these messages took together.
        state: worst state of the shards.
        horizon_age: seconds since the oldest shard's last proof of freshness; ``inf`` if there is none.
        shard_states: state of each shard; empty without a local tier.
        shard_horizon_ages: seconds since each shard's last proof of freshness; empty without a local tier.
    """

    enabled: bool
    size: int
    max_entries: int
    bytes: int
    hits: int
    misses: int
    hit_rate: float
    total_requests: int
    redis_hits: int
    loads: int
    load_failures: int
    stale_served: int
    evictions: int
    expirations: int
    removals: dict[str, int]
    invalidations_received: int
    invalidations_applied: int
    invalidations_ignored: int
    fills_refused: int
    resyncs: int
    replays: int
    flushes: int
    errors: int
    propagation_p50: float | None
    propagation_p99: float | None
    propagation_counts: tuple[int, ...]
    propagation_sum: float
    state: str
    horizon_age: float
    shard_states: tuple[str, ...]
    shard_horizon_ages: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a dict of plain values."""
        return asdict(self)


class Counters:
    """Counters that operations and the subscriber add to.

    The rule: each is added to where its event is decided, without a lock of its own. Those of a shard are exact,
    because that place holds the shard's lock; the others are exact under the GIL, and on a free-threaded build may
    miss a few of many concurrent additions.
    """

    __slots__ = (
        "applied",
        "errors",
        "fills_refused",
        "flushes",
        "load_failures",
        "loads",
        "misses",
        "received",
        "redis_hits",
        "replays",
        "resyncs",
        "stale_served",
    )

    def __init__(self) -> None:
        self.misses = 0
        self.redis_hits = 0
        self.loads = 0
        self.load_failures = 0
        self.stale_served = 0
        self.received = 0
        self.applied = 0
        self.fills_refused = 0
        self.resyncs = 0
        self.replays = 0
        self.flushes = 0
        self.errors = 0


class LagMeter:
    """Measures how long messages take, though hosts' clocks differ.

    Every sync reply carries the server's clock; half the round trip later it is compared with the local one. The
    comparison with the shortest round trip of the last few gives the offset, with an error of at most half of that
    round trip.

    Attributes:
        offset: server's clock less the local one, in seconds; None if it is not known.
        counts: delays observed, by the classes of ``LAG_BUCKETS``, the last for what is longer.
        total: sum of the delays observed, in seconds.
    """

    __slots__ = ("_lags", "_offsets", "counts", "offset", "total")

    def __init__(self) -> None:
        self._lags: deque[float] = deque(maxlen=LAG_SAMPLES)
        self._offsets: deque[tuple[float, float]] = deque(maxlen=OFFSET_SAMPLES)
        self.offset: float | None = None
        self.counts = [0] * (len(LAG_BUCKETS) + 1)
        self.total = 0.0

    def compare(self, server_us: int, sent_at: float, received_at: float) -> None:
        """Note a comparison of the clocks.

        Args:
            server_us: the server's clock, in microseconds.
            sent_at: local clock before the question was sent, in seconds.
            received_at: local clock after the answer came, in seconds.
        """
        self._offsets.append((received_at - sent_at, server_us / 1e6 - (sent_at + received_at) / 2))
        self.offset = min(self._offsets)[1]

    def observe(self, server_us: int, now: float) -> float | None:
        """Note a message written at ``server_us`` (microseconds), applied at ``now``; return its delay in seconds."""
        if self.offset is None:
            return None
        lag = max(0.0, now + self.offset - server_us / 1e6)
        self._lags.append(lag)
        self.counts[bisect_left(LAG_BUCKETS, lag)] += 1
        self.total += lag
        return lag

    def reset(self) -> None:
        """Forget the comparisons: another server's clock follows."""
        self._offsets.clear()
        self.offset = None

    def percentile(self, fraction: float) -> float | None:
        """Return a percentile of the latest delays in seconds, None if there are none."""
        lags = sorted(self._lags.copy())
        return lags[min(len(lags) - 1, int(fraction * len(lags)))] if lags else None
