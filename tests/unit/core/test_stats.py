"""Counters start at nothing, the propagation meter survives clocks that differ, the snapshot is complete."""

from __future__ import annotations

import dataclasses
import inspect
import json
import random
import re
from math import inf

import pytest

from coherent_cache.core.stats import LAG_BUCKETS, LAG_SAMPLES, OFFSET_SAMPLES, CacheStats, Counters, LagMeter

AHEAD = 3600.0  # the server's clock is an hour ahead of the local one


def us(seconds: float) -> int:
    return round(seconds * 1_000_000)


@pytest.fixture
def meter() -> LagMeter:
    return LagMeter()


# --- offset: the comparison with the shortest round trip counts ---


def test_without_a_comparison_nothing_is_known(meter):
    assert meter.offset is None
    assert meter.observe(us(1000), now=1000.0) is None
    assert meter.percentile(0.5) is None


def test_one_comparison_gives_the_offset(meter):
    # Asked at 100.0, answered at 100.2: the server's clock was read at about 100.1.
    meter.compare(us(100.1 + AHEAD), sent_at=100.0, received_at=100.2)

    assert meter.offset == pytest.approx(AHEAD, abs=1e-6)


@pytest.mark.parametrize("ahead", [-AHEAD, 0.0, AHEAD])
def test_the_shortest_round_trip_counts(meter, ahead):
    # The slow ones were slow in one direction only: half of their round trip misleads.
    meter.compare(us(100.0 + ahead), sent_at=100.0, received_at=101.0)
    meter.compare(us(200.0005 + ahead), sent_at=200.0, received_at=200.001)
    meter.compare(us(301.0 + ahead), sent_at=300.0, received_at=301.0)

    assert meter.offset == pytest.approx(ahead, abs=1e-5)


@pytest.mark.parametrize("asymmetry", [0.0, 0.25, 1.0])
def test_the_error_is_at_most_half_of_that_round_trip(meter, asymmetry):
    for number, round_trip in enumerate([0.5, 0.01, 0.2]):
        sent_at = 100.0 + number
        meter.compare(us(sent_at + asymmetry * round_trip + AHEAD), sent_at, sent_at + round_trip)

    assert abs(meter.offset - AHEAD) <= 0.01 / 2 + 1e-6


def test_only_the_latest_comparisons_count(meter):
    # A clock that is adjusted, or drifts: the best comparison of last week must not count for ever.
    meter.compare(us(100.0 + AHEAD), sent_at=100.0, received_at=100.0)
    for number in range(OFFSET_SAMPLES - 1):
        meter.compare(us(200.1 + number), sent_at=200.0 + number, received_at=200.2 + number)
    assert meter.offset == pytest.approx(AHEAD)

    meter.compare(us(300.1), sent_at=300.0, received_at=300.2)
    assert meter.offset == pytest.approx(0.0, abs=1e-6)


def test_after_a_reset_the_next_comparison_counts_alone(meter):
    meter.compare(us(100.0 + AHEAD), sent_at=100.0, received_at=100.0)
    meter.observe(us(101.0 + AHEAD), now=101.25)

    meter.reset()

    assert meter.offset is None
    assert meter.observe(us(102.0), now=102.0) is None
    meter.compare(us(200.5), sent_at=200.0, received_at=201.0)
    assert meter.offset == pytest.approx(0.0)


def test_a_reset_keeps_the_delays_that_were_measured(meter):
    meter.compare(us(100.0), sent_at=100.0, received_at=100.0)
    meter.observe(us(100.0), now=100.25)

    meter.reset()
    meter.observe(us(100.0), now=109.0)  # not comparable

    assert meter.percentile(0.5) == pytest.approx(0.25)


# --- delays ---


@pytest.mark.parametrize("ahead", [-AHEAD, 0.0, AHEAD])
def test_a_delay_is_measured_on_one_clock(meter, ahead):
    meter.compare(us(100.0 + ahead), sent_at=100.0, received_at=100.0)

    assert meter.observe(us(200.0 + ahead), now=200.002) == pytest.approx(0.002, abs=1e-6)


def test_a_delay_is_never_negative(meter):
    # The offset is an estimate: a message must not seem to arrive before it was sent.
    meter.compare(us(100.5), sent_at=100.0, received_at=101.0)

    assert meter.observe(us(200.0), now=199.9) == 0.0
    assert meter.percentile(0.5) == 0.0


def test_clocks_since_the_epoch_keep_microseconds(meter):
    now = 1_800_000_000.0
    meter.compare(us(now), sent_at=5.0, received_at=5.0)

    assert meter.observe(us(now + 1.0), now=6.000_100) == pytest.approx(0.0001, abs=2e-6)


# --- percentiles ---


def fill(meter: LagMeter, lags) -> None:
    meter.compare(0, sent_at=0.0, received_at=0.0)
    for lag in lags:
        meter.observe(0, now=lag)


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.0, 1.0), (0.01, 2.0), (0.5, 51.0), (0.98, 99.0), (0.99, 100.0), (1.0, 100.0)]
)
def test_percentiles_of_a_hundred_delays(meter, fraction, expected):
    lags = [float(number) for number in range(1, 101)]
    random.shuffle(lags)
    fill(meter, lags)

    assert meter.percentile(fraction) == expected


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.99, 1.0])
def test_one_delay_is_every_percentile(meter, fraction):
    fill(meter, [0.25])

    assert meter.percentile(fraction) == 0.25


def test_a_rare_slow_message_shows_in_p99_only(meter):
    fill(meter, [0.001] * 98 + [5.0] * 2)

    assert (meter.percentile(0.5), meter.percentile(0.99)) == (0.001, 5.0)


def test_only_the_latest_delays_count(meter):
    fill(meter, [9.0] * LAG_SAMPLES)
    fill(meter, [1.0] * (LAG_SAMPLES // 2))
    assert (meter.percentile(0.5), meter.percentile(0.99)) == (9.0, 9.0)

    fill(meter, [1.0] * LAG_SAMPLES)
    assert meter.percentile(1.0) == 1.0


def test_asking_changes_nothing(meter):
    fill(meter, [3.0, 1.0, 2.0])

    assert [meter.percentile(0.5) for _ in range(3)] == [2.0] * 3


# --- classes of delays ---


@pytest.mark.parametrize(
    ("lag", "index"),
    [(0.0, 0), (0.0005, 0), (0.00051, 1), (0.001, 1), (4.99, -2), (5.0, -2), (5.01, -1), (3600.0, -1)],
)
def test_a_delay_is_counted_up_to_the_bound_of_its_class(meter, lag, index):
    fill(meter, [lag])

    assert meter.counts[index] == sum(meter.counts) == 1
    assert len(meter.counts) == len(LAG_BUCKETS) + 1


def test_all_delays_are_counted_not_only_the_latest(meter):
    fill(meter, [0.25] * (2 * LAG_SAMPLES))

    assert sum(meter.counts) == 2 * LAG_SAMPLES
    assert meter.total == 0.25 * 2 * LAG_SAMPLES


def test_a_delay_that_cannot_be_known_is_not_counted(meter):
    meter.observe(0, now=1.0)

    assert (sum(meter.counts), meter.total) == (0, 0.0)


# --- counters ---


def test_counters_start_at_zero_and_cannot_be_misspelt():
    counters = Counters()

    assert {name: getattr(counters, name) for name in Counters.__slots__} == dict.fromkeys(Counters.__slots__, 0)
    with pytest.raises(AttributeError):
        counters.mises = 1


# --- snapshot ---


def snapshot(**changes) -> CacheStats:
    values = {
        "enabled": True,
        "size": 3,
        "max_entries": 10,
        "bytes": 300,
        "hits": 8,
        "misses": 2,
        "hit_rate": 0.8,
        "total_requests": 10,
        "redis_hits": 1,
        "load_failures": 0,
        "stale_served": 0,
        "loads": 1,
        "evictions": 0,
        "expirations": 0,
        "removals": {"invalidated": 1},
        "invalidations_received": 5,
        "invalidations_applied": 2,
        "invalidations_ignored": 3,
        "fills_refused": 0,
        "resyncs": 1,
        "replays": 0,
        "flushes": 0,
        "errors": 0,
        "propagation_p50": 0.001,
        "propagation_p99": None,
        "propagation_counts": (0, 5),
        "propagation_sum": 0.005,
        "state": "coherent",
        "horizon_age": 0.5,
        "shard_states": ("coherent",),
        "shard_horizon_ages": (0.5,),
    }
    return CacheStats(**(values | changes))


def test_the_snapshot_as_a_dict_has_every_field():
    stats = snapshot()

    found = stats.as_dict()

    assert list(found) == [field.name for field in dataclasses.fields(CacheStats)]
    assert CacheStats(**found) == stats
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
    assert json.loads(json.dumps(found)) == plain


def test_the_dict_is_the_callers_own():
    stats = snapshot()

    stats.as_dict()["removals"]["invalidated"] = 99

    assert stats.removals == {"invalidated": 1}


def test_the_snapshot_has_the_fields_that_the_documents_promise():
    promised = {
        "hit_rate",
        "redis_hits",
        "state",
        "expirations",
        "enabled",
        "max_entries",
        "loads",
        "size",
        "invalidations_ignored",
        "replays",
        "hits",
        "fills_refused",
        "total_requests",
        "resyncs",
        "evictions",
        "invalidations_applied",
        "bytes",
        "propagation_p99",
        "horizon_age",
        "propagation_p50",
        "errors",
        "invalidations_received",
        "misses",
        "flushes",
    }

    assert promised <= {field.name for field in dataclasses.fields(CacheStats)}


def test_every_field_of_the_snapshot_is_documented():
    documented = re.findall(r"^ {8}(\w+):", CacheStats.__doc__, re.MULTILINE)

    assert documented == list(inspect.signature(CacheStats).parameters)


def test_the_snapshot_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        snapshot().hits = 9


def test_a_cache_that_never_connected_has_an_infinite_age():
    assert snapshot(horizon_age=inf).as_dict()["horizon_age"] == inf
