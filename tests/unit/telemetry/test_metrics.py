"""The table of metrics: names, units and what is read."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import replace
from math import inf

import pytest

from coherent_cache.core.auditing import CONSISTENCY_AT, AuditReport
from coherent_cache.core.entries import RemovalCause
from coherent_cache.core.questions import InstanceReport
from coherent_cache.core.stats import LAG_BUCKETS, CacheStats
from coherent_cache.telemetry.metrics import AUDIT_METRICS, INSTANCE, LABELS, METRICS, NAMESPACE

BY_NAME = {metric.name.removeprefix("coherent_cache."): metric for metric in METRICS}


def stats(**changes):
    """Return a snapshot in which every number is another one."""
    numbers = {field.name: number for number, field in enumerate(dataclasses.fields(CacheStats), 1)}
    plain = {
        "enabled": True,
        "removals": {cause.value: 100 + index for index, cause in enumerate(RemovalCause)},
        "propagation_counts": tuple(range(len(LAG_BUCKETS) + 1)),
        "state": "suspect",
        "shard_states": ("coherent", "suspect"),
        "shard_horizon_ages": (0.5, inf),
    }
    return CacheStats(**(numbers | plain | changes))


def points(name, **changes):
    return dict(BY_NAME[name].read(stats(**changes)))


@pytest.mark.parametrize("metric", [*METRICS, *AUDIT_METRICS], ids=lambda metric: metric.name)
def test_names_follow_the_conventions_of_both(metric):
    assert re.fullmatch(r"coherent_cache(\.[a-z_]+)+", metric.name)
    assert re.fullmatch(r"coherent_cache(_[a-z]+)+", metric.prometheus)
    assert metric.prometheus.endswith("_total") == (metric.kind == "counter")
    assert ("_seconds" in metric.prometheus) == (metric.unit == "s")
    assert ("_ratio" in metric.prometheus) == (metric.unit == "1")
    assert ("_bytes" in metric.prometheus) == (metric.unit == "By")
    assert re.fullmatch(r"s|By|1|\{[a-z]+\}|", metric.unit)
    assert metric.help.endswith(".")
    assert set(metric.labels) <= LABELS.keys() - {NAMESPACE, INSTANCE}


def test_no_two_have_one_name():
    assert len({metric.prometheus for metric in METRICS}) == len(METRICS) == len(BY_NAME)
    assert len({metric.prometheus for metric in (*METRICS, *AUDIT_METRICS)}) == len(METRICS) + len(AUDIT_METRICS)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_every_point_has_the_metrics_labels(metric):
    found = list(metric.read(stats()))
    assert found
    if metric.kind != "histogram":
        assert {len(labels) for labels, _ in found} == {len(metric.labels)}
        assert len({labels for labels, _ in found}) == len(found)


REPORT = InstanceReport(
    member="worker:1", instance="worker", state="suspect", horizon_age=0.5, entries=1, bytes=2, hits=3, misses=4,
    redis_hits=5, loads=6,
    invalidations=17, applied=7, resyncs=8, flushes=9, errors=10, propagation_p50=0.25, options={"max_entries": 11},
)  # fmt: skip


def test_a_report_tells_what_it_can_under_the_same_names_and_labels():
    told = {
        name: dict(metric.reported(REPORT)) for name, metric in BY_NAME.items() if metric.reported is not None
    }  # fmt: skip
    states = told.pop("state")
    assert {labels for labels, number in states.items() if number == 1.0} == {("all", "suspect")}
    assert len(states) == 4
    assert told == {
        "hits": {(): 3}, "misses": {(): 4}, "redis_hits": {(): 5}, "loads": {(): 6}, "entries": {(): 1},
        "entries.limit": {(): 11}, "memory": {(): 2}, "invalidations": {("applied",): 7, ("ignored",): 10},
        "propagation.recent": {("0.5",): 0.25}, "horizon.age": {("all",): 0.5}, "resyncs": {(): 8}, "flushes": {(): 9},
        "errors": {(): 10},
    }  # fmt: skip


def test_an_option_that_a_report_does_not_tell_is_left_out():
    assert list(BY_NAME["entries.limit"].reported(replace(REPORT, options={}))) == []


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("hits", "hits"), ("misses", "misses"), ("redis_hits", "redis_hits"), ("loads", "loads"),
        ("load_failures", "load_failures"), ("stale_served", "stale_served"), ("entries", "size"),
        ("entries.limit", "max_entries"), ("memory", "bytes"), ("fills_refused", "fills_refused"),
        ("resyncs", "resyncs"), ("replays", "replays"), ("flushes", "flushes"), ("errors", "errors"),
    ],
)  # fmt: skip
def test_a_plain_number_is_its_field(name, field):
    assert points(name) == {(): getattr(stats(), field)}


def test_removals_have_their_cause():
    assert points("removals") == {(cause.value,): 100 + index for index, cause in enumerate(RemovalCause)}


def test_invalidations_have_their_outcome():
    found = stats()
    assert points("invalidations") == {
        ("applied",): found.invalidations_applied,
        ("ignored",): found.invalidations_ignored,
    }


def test_quantiles_that_are_not_known_are_left_out():
    assert points("propagation.recent", propagation_p50=0.25, propagation_p99=0.5) == {("0.5",): 0.25, ("0.99",): 0.5}
    assert points("propagation.recent", propagation_p50=None, propagation_p99=None) == {}


def test_the_audits_metrics_are_its_numbers():
    report = AuditReport(
        namespace="shop", asked=1, answered=1, keys=1, checked=1, behind=0, not_served=0, undecided=0, gone=0,
        stale=dict.fromkeys(CONSISTENCY_AT, 0), bound=5.0, beyond=0, offenders=(), seconds=0.0,
    )  # fmt: skip
    names = [name for metric in AUDIT_METRICS for name in metric.numbers.values()]
    assert sorted(names) == sorted([*report.numbers(), "runs", "failures"])
    for metric in AUDIT_METRICS:
        assert {len(labels) for labels in metric.numbers} == {len(metric.labels)}


def test_a_shard_is_in_one_state():
    found = points("state")
    assert {labels for labels, number in found.items() if number == 1.0} == {("0", "coherent"), ("1", "suspect")}
    assert set(found.values()) == {0.0, 1.0}
    assert len(found) == 2 * 4


def test_horizons_are_by_shard():
    assert points("horizon.age") == {("0",): 0.5, ("1",): inf}
