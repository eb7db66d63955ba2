"""A fleet at a glance: what its instances report, and what that is together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coherent_cache.core.questions import InstanceReport
from coherent_cache.core.states import State
from coherent_cache.core.stats import Lookups


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetTotals(Lookups):
    """All instances of a fleet together.

    Attributes:
        instances: those that report themselves.
        states: how many of them are in which state (P5).
        entries: entries in their local tiers.
        bytes: estimated bytes of their local tiers.
        hits: keys served from local tiers.
        misses: keys that were asked for and not served from a local tier.
        redis_hits: misses that Redis had a value for.
        loads: loader calls.
        invalidations: messages received.
        resyncs: completed resyncs.
        flushes: how often a shard's local tier was emptied because it was in doubt.
        errors: commands that failed, and faults that subscribers survived.
        horizon_age: the oldest of their horizons, in seconds; None if there are no instances.
        propagation_p50: the slowest instance's median, in seconds; None if unknown.
        propagation_p99: the slowest instance's 99th percentile, in seconds; None if unknown.
    """

    instances: int
    states: Mapping[str, int]
    entries: int
    bytes: int
    hits: int
    misses: int
    redis_hits: int
    loads: int
    invalidations: int
    resyncs: int
    flushes: int
    errors: int
    horizon_age: float | None
    propagation_p50: float | None
    propagation_p99: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and what follows from them as a dict of plain values."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return values | {"states": dict(self.states), "requests": self.requests, "hit_rate": self.hit_rate}


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetStatus:
    """Who is in a namespace just now. An instance that has crashed is gone after a few heartbeats.

    Attributes:
        namespace: the namespace.
        server: where Redis is, for people.
        exists: whether anything was ever written or read in this namespace.
        instances: what instances with a local tier say about themselves, by name.
        silent: instances with a local tier that were seen lately and do not report themselves: crashed a moment ago, or
            with ``report=False``.
    """

    namespace: str
    server: str
    exists: bool
    instances: tuple[InstanceReport, ...]
    silent: tuple[str, ...]

    @property
    def totals(self) -> FleetTotals:
        """All instances together."""
        reports = self.instances
        states = Counter(each.state for each in reports)
        return FleetTotals(
            instances=len(reports),
            states={state.value: states[state.value] for state in State if states[state.value]},
            entries=sum(each.entries for each in reports),
            bytes=sum(each.bytes for each in reports),
            hits=sum(each.hits for each in reports),
            misses=sum(each.misses for each in reports),
            redis_hits=sum(each.redis_hits for each in reports),
            loads=sum(each.loads for each in reports),
            invalidations=sum(each.invalidations for each in reports),
            resyncs=sum(each.resyncs for each in reports),
            flushes=sum(each.flushes for each in reports),
            errors=sum(each.errors for each in reports),
            horizon_age=max((each.horizon_age for each in reports), default=None),
            propagation_p50=_slowest([each.propagation_p50 for each in reports]),
            propagation_p99=_slowest([each.propagation_p99 for each in reports]),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return everything as a dict of plain values."""
        return {
            "namespace": self.namespace,
            "server": self.server,
            "exists": self.exists,
            "instances": [each.as_dict() for each in self.instances],
            "silent": list(self.silent),
            "totals": self.totals.as_dict(),
        }


def _slowest(values: list[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
