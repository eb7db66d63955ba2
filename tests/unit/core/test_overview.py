"""A fleet's totals: sums of what can be added, the worst of what cannot."""

from math import inf

from coherent_cache.core.overview import FleetStatus
from coherent_cache.core.questions import InstanceReport


def status(*instances):
    return FleetStatus(namespace="n", server="here", exists=True, instances=instances, silent=("c:1",))


def test_totals():
    totals = status(
        InstanceReport(
            member="a:1", instance="a", state="coherent", entries=3, bytes=300, hits=6, misses=2, redis_hits=1, loads=1,
            invalidations=5, resyncs=1, flushes=0, errors=1, horizon_age=0.5, propagation_p50=0.1, propagation_p99=0.2,
        ),
        InstanceReport(
            member="b:1", instance="b", state="coherent", entries=1, bytes=100, hits=1, misses=1, horizon_age=inf,
            propagation_p50=0.3,
        ),
        InstanceReport(member="c:1", instance="c", state="suspect"),
    ).totals  # fmt: skip

    assert totals.as_dict() == {
        "instances": 3, "states": {"coherent": 2, "suspect": 1}, "entries": 4, "bytes": 400, "hits": 7, "misses": 3,
        "redis_hits": 1, "loads": 1, "invalidations": 5, "resyncs": 1, "flushes": 0, "errors": 1, "horizon_age": inf,
        "propagation_p50": 0.3, "propagation_p99": 0.2, "requests": 10, "hit_rate": 0.7,
    }  # fmt: skip


def test_nobody_there():
    nobody = status()

    assert (nobody.totals.hit_rate, nobody.totals.horizon_age, nobody.totals.propagation_p99) == (0.0, None, None)
    assert nobody.as_dict()["silent"] == ["c:1"]
    assert nobody.as_dict()["totals"]["instances"] == 0
