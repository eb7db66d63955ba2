"""Every metric of an instance, once: what Prometheus, OpenTelemetry and docs/reference/metrics.md are made from.

Names and units are OpenTelemetry's; :attr:`Metric.prometheus` is what its rules of translation make of them, so that
one dashboard serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from coherent_cache.core.questions import InstanceReport
from coherent_cache.core.states import SEVERITY
from coherent_cache.core.stats import CacheStats

Kind = Literal["counter", "gauge", "histogram"]
Point = tuple[tuple[str, ...], float]
"""Values of a metric's own labels, and the number."""

NAMESPACE: Final = "cache.namespace"
"""Label of all metrics: the namespace. Prometheus reserves the plain names for what it scrapes."""

INSTANCE: Final = "cache.instance"
"""Label of all metrics, unless it is left out: the instance's id."""

SHARD: Final = "cache.shard"
ALL_SHARDS: Final = "all"
"""The shard that an instance's report tells of: the worst of all."""

STATE: Final = "cache.state"
CAUSE: Final = "cache.cause"
OUTCOME: Final = "cache.outcome"
QUANTILE: Final = "cache.quantile"

LABELS: Final[Mapping[str, str]] = MappingProxyType(
    {
        NAMESPACE: "the namespace",
        INSTANCE: "the instance's id",
        SHARD: "number of the shard, from 0; `all` for the worst of them, of a whole fleet",
        STATE: "`coherent`, `suspect`, `connecting` or `disconnected`",
        CAUSE: "why an entry left: `size`, `expired`, `invalidated`, `replaced`, `flushed`, `cleared` or `unproven`",
        OUTCOME: "`applied` if a message concerned an entry held, or a command under way, here; else `ignored`",
        QUANTILE: "`0.5` or `0.99`",
    }
)
"""All labels, and what they say."""

_UNIT_SUFFIXES: Final = {"s": "_seconds", "By": "_bytes"}


def prometheus_label(label: str) -> str:
    """Return the name of a label in Prometheus."""
    return label.replace(".", "_")


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: its name in OpenTelemetry.
        kind: ``counter`` (only grows, from 0 at the start of the process), ``gauge`` or ``histogram``.
        unit: in UCUM, as OpenTelemetry writes it: ``s`` seconds, ``By`` bytes, ``{...}`` a count of something.
        help: what it is, a sentence.
        labels: its labels beside the namespace and the instance.
        read: takes its points from a snapshot. A histogram's are numbers per class of ``LAG_BUCKETS``, without labels.
        reported: takes its points from what an instance reports about itself; None if that does not tell it.
    """

    name: str
    kind: Kind
    unit: str
    help: str
    read: Callable[[CacheStats], Iterable[Point]]
    labels: tuple[str, ...] = ()
    reported: Callable[[InstanceReport], Iterable[Point]] | None = None

    @property
    def prometheus(self) -> str:
        """Its name in Prometheus."""
        suffix = _UNIT_SUFFIXES.get(self.unit, "") + ("_total" if self.kind == "counter" else "")
        return self.name.replace(".", "_") + suffix


def _field(name: str) -> Callable[[CacheStats | InstanceReport], Iterable[Point]]:
    """Return a reader of one number of a snapshot or a report."""
    return lambda told: [((), getattr(told, name))]


def _counter(name: str, unit: str, text: str, *, reported: bool = True) -> Metric:
    field = _field(name)
    return Metric(f"coherent_cache.{name}", "counter", unit, text, field, reported=field if reported else None)


def _quantiles(told: CacheStats | InstanceReport) -> Iterable[Point]:
    found = (("0.5", told.propagation_p50), ("0.99", told.propagation_p99))
    return [((quantile,), value) for quantile, value in found if value is not None]


def _limit(report: InstanceReport) -> Iterable[Point]:
    limit = report.options.get("max_entries")
    return [((), limit)] if isinstance(limit, int) else []


def _states(shard: str, now: str) -> Iterable[Point]:
    return [((shard, state.value), float(state == now)) for state in SEVERITY]


METRICS: Final = (
    _counter("hits", "{key}", "Keys served from the local tier."),
    _counter("misses", "{key}", "Keys asked for and not served from the local tier."),
    _counter("redis_hits", "{key}", "Misses that Redis had a value for."),
    _counter("loads", "{call}", "Calls of loaders."),
    _counter(
        "load_failures", "{call}", "Calls of loaders that raised, or whose value could not be encoded.", reported=False
    ),
    _counter(
        "stale_served",
        "{key}",
        "Values served beyond their time, because loading failed or took too long.",
        reported=False,
    ),
    Metric(
        "coherent_cache.entries",
        "gauge",
        "{entry}",
        "Entries in the local tier.",
        _field("size"),
        reported=_field("entries"),
    ),
    Metric(
        "coherent_cache.entries.limit",
        "gauge",
        "{entry}",
        "Most entries it may hold.",
        _field("max_entries"),
        reported=_limit,
    ),
    Metric(
        "coherent_cache.memory",
        "gauge",
        "By",
        "Estimated size of the local tier.",
        _field("bytes"),
        reported=_field("bytes"),
    ),
    Metric(
        "coherent_cache.removals",
        "counter",
        "{entry}",
        "Entries that left the local tier.",
        lambda stats: [((cause,), count) for cause, count in stats.removals.items()],
        (CAUSE,),
    ),
    Metric(
        "coherent_cache.invalidations",
        "counter",
        "{message}",
        "Messages of writes received.",
        lambda stats: [(("applied",), stats.invalidations_applied), (("ignored",), stats.invalidations_ignored)],
        (OUTCOME,),
        lambda report: [(("applied",), report.applied), (("ignored",), report.invalidations - report.applied)],
    ),
    Metric(
        "coherent_cache.propagation",
        "histogram",
        "s",
        "Time from a write's execution in Redis to its application here.",
        lambda stats: [((), count) for count in stats.propagation_counts],
    ),
    Metric(
        "coherent_cache.propagation.recent",
        "gauge",
        "s",
        "Quantiles of the same, of the last 1,024 messages of the worst shard; nothing before the first message.",
        _quantiles,
        (QUANTILE,),
        _quantiles,
    ),
    Metric(
        "coherent_cache.state",
        "gauge",
        "",
        "1 for the state that a shard is in, 0 for the others.",
        lambda stats: [point for shard, now in enumerate(stats.shard_states) for point in _states(str(shard), now)],
        (SHARD, STATE),
        lambda report: _states(ALL_SHARDS, report.state),
    ),
    Metric(
        "coherent_cache.horizon.age",
        "gauge",
        "s",
        "Time since a shard's last proof of freshness; infinite, in OpenTelemetry left out, if there is none.",
        lambda stats: [((str(shard),), age) for shard, age in enumerate(stats.shard_horizon_ages)],
        (SHARD,),
        lambda report: [((ALL_SHARDS,), report.horizon_age)],
    ),
    _counter("fills_refused", "{value}", "Values returned but not kept, because they may be outdated.", reported=False),
    _counter("resyncs", "{resync}", "Completed resyncs, the first one of each shard included."),
    _counter("replays", "{message}", "Missed messages that were applied from the log.", reported=False),
    _counter("flushes", "{flush}", "Times that a shard's local tier was emptied, because nothing proved it any more."),
    _counter("errors", "{error}", "Commands that failed, and faults that the subscriber survived."),
)
"""All metrics, in the order of the documentation."""
