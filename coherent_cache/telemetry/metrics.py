"""Every metric of an instance, once: what Prometheus, OpenTelemetry and docs/reference/metrics.md are made from.

Names and units are OpenTelemetry's; :attr:`Metric.prometheus` is what its rules of translation make of them, so that
one dashboard serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

from coherent_cache.core.auditing import CONSISTENCY_AT
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
DELAY: Final = "cache.delay"

LABELS: Final[Mapping[str, str]] = MappingProxyType(
    {
        NAMESPACE: "the namespace",
        INSTANCE: "the instance's id",
        SHARD: "number of the shard, from 0; `all` for the worst of them, of a whole fleet",
        STATE: "`coherent`, `suspect`, `connecting` or `disconnected`",
        CAUSE: "why an entry left: `size`, `expired`, `invalidated`, `replaced`, `flushed`, `cleared` or `unproven`",
        OUTCOME: "`applied` if a message concerned an entry held, or a command under way, here; else `ignored`",
        QUANTILE: "`0.5` or `0.99`",
        DELAY: "seconds since a write: `0.1`, `1` or `10`",
    }
)
"""All labels, and what they say."""

_UNIT_SUFFIXES: Final = {"s": "_seconds", "By": "_bytes", "1": "_ratio"}


def prometheus_label(label: str) -> str:
    """Return the name of a label in Prometheus."""
    return label.replace(".", "_")


@dataclass(frozen=True, slots=True)
class Named:
    """What any metric is called.

    Attributes:
        name: its name in OpenTelemetry.
        kind: ``counter`` (only grows, from 0 at the start of the process), ``gauge`` or ``histogram``.
        unit: in UCUM, as OpenTelemetry writes it: ``s`` seconds, ``By`` bytes, ``1`` a part, ``{...}`` a count.
        help: what it is, a sentence.
        labels: its labels beside the namespace and the instance.
    """

    name: str
    kind: Kind
    unit: str
    help: str
    labels: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def prometheus(self) -> str:
        """Its name in Prometheus."""
        suffix = _UNIT_SUFFIXES.get(self.unit, "") + ("_total" if self.kind == "counter" else "")
        return self.name.replace(".", "_") + suffix


@dataclass(frozen=True, slots=True)
class Metric(Named):
    """A metric of an instance.

    Attributes:
        read: takes its points from a snapshot. A histogram's are numbers per class of ``LAG_BUCKETS``, without labels.
        reported: takes its points from what an instance reports about itself; None if that does not tell it.
    """

    read: Callable[[CacheStats], Iterable[Point]]
    reported: Callable[[InstanceReport], Iterable[Point]] | None = None


@dataclass(frozen=True, slots=True)
class AuditMetric(Named):
    """A metric of a fleet's last audit.

    Attributes:
        numbers: values of its own labels, and the name that ``ContinuousAudit.numbers()`` has for the number.
    """

    numbers: Mapping[tuple[str, ...], str]


def _number(name: str) -> Callable[[CacheStats | InstanceReport], Iterable[Point]]:
    """Return a reader of one number of a snapshot or a report."""
    return lambda told: [((), getattr(told, name))]


def _counter(name: str, unit: str, text: str, *, reported: bool = True) -> Metric:
    number = _number(name)
    return Metric(f"coherent_cache.{name}", "counter", unit, text, number, reported=number if reported else None)


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
        _number("size"),
        reported=_number("entries"),
    ),
    Metric(
        "coherent_cache.entries.limit",
        "gauge",
        "{entry}",
        "Most entries it may hold.",
        _number("max_entries"),
        reported=_limit,
    ),
    Metric(
        "coherent_cache.memory",
        "gauge",
        "By",
        "Estimated size of the local tier.",
        _number("bytes"),
        reported=_number("bytes"),
    ),
    Metric(
        "coherent_cache.removals",
        "counter",
        "{entry}",
        "Entries that left the local tier.",
        lambda stats: [((cause,), count) for cause, count in stats.removals.items()],
        labels=(CAUSE,),
    ),
    Metric(
        "coherent_cache.invalidations",
        "counter",
        "{message}",
        "Messages of writes received.",
        lambda stats: [(("applied",), stats.invalidations_applied), (("ignored",), stats.invalidations_ignored)],
        labels=(OUTCOME,),
        reported=lambda report: [(("applied",), report.applied), (("ignored",), report.invalidations - report.applied)],
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
        labels=(QUANTILE,),
        reported=_quantiles,
    ),
    Metric(
        "coherent_cache.state",
        "gauge",
        "",
        "1 for the state that a shard is in, 0 for the others.",
        lambda stats: [point for shard, now in enumerate(stats.shard_states) for point in _states(str(shard), now)],
        labels=(SHARD, STATE),
        reported=lambda report: _states(ALL_SHARDS, report.state),
    ),
    Metric(
        "coherent_cache.horizon.age",
        "gauge",
        "s",
        "Time since a shard's last proof of freshness; infinite, in OpenTelemetry left out, if there is none.",
        lambda stats: [((str(shard),), age) for shard, age in enumerate(stats.shard_horizon_ages)],
        labels=(SHARD,),
        reported=lambda report: [((ALL_SHARDS,), report.horizon_age)],
    ),
    _counter("fills_refused", "{value}", "Values returned but not kept, because they may be outdated.", reported=False),
    _counter("resyncs", "{resync}", "Completed resyncs, the first one of each shard included."),
    _counter("replays", "{message}", "Missed messages that were applied from the log.", reported=False),
    _counter("flushes", "{flush}", "Times that a shard's local tier was emptied, because nothing proved it any more."),
    _counter("errors", "{error}", "Commands that failed, and faults that the subscriber survived."),
)
"""All metrics, in the order of the documentation."""


def _audit(name: str, unit: str, text: str, kind: Kind = "gauge") -> AuditMetric:
    return AuditMetric(f"coherent_cache.audit.{name}", kind, unit, text, {(): name})


def _delays(prefix: str) -> Mapping[tuple[str, ...], str]:
    return {(f"{delay:g}",): f"{prefix}_{delay:g}s" for delay in CONSISTENCY_AT}


AUDIT_METRICS: Final = (
    AuditMetric(
        "coherent_cache.audit.consistency",
        "gauge",
        "1",
        "Part of the entries compared that were not outdated for that long.",
        _delays("consistency"),
        labels=(DELAY,),
    ),
    AuditMetric(
        "coherent_cache.audit.stale",
        "gauge",
        "{entry}",
        "Entries that were outdated for at least that long.",
        _delays("stale"),
        labels=(DELAY,),
    ),
    _audit(
        "beyond_bound", "{entry}", "Entries that were outdated for longer than the options allow: a fault if not 0."
    ),
    _audit("checked", "{entry}", "Entries that were compared with Redis."),
    _audit("behind", "{entry}", "Entries that were behind at the first look, most while their message was on its way."),
    _audit("undecided", "{entry}", "Entries that could not be compared to the end."),
    _audit("gone", "{entry}", "Entries of which Redis has no value, without a message."),
    _audit("instances_asked", "{instance}", "Instances that were asked."),
    _audit("instances_answered", "{instance}", "Instances that answered."),
    _audit("runs", "{audit}", "Audits that came to an end.", "counter"),
    _audit("failures", "{audit}", "Audits that could not be done, because Redis was away.", "counter"),
)
"""Metrics of the last audit of a whole fleet, in the order of the documentation. None before the first audit's end."""
