"""One instance: how it divides its limits, makes entries, reports foreign bytes, and adds up its shards."""

import random
from contextlib import nullcontext
from math import inf

import pytest

from coherent_cache.config import Settings
from coherent_cache.core.entries import ENTRY_OVERHEAD_BYTES, RemovalCause
from coherent_cache.core.instance import CACHED_KEYS, Instance
from coherent_cache.core.states import SEVERITY, State, worst
from coherent_cache.core.stats import LAG_BUCKETS, CacheStats
from coherent_cache.errors import ForeignValue, InvalidKey
from coherent_cache.events import FillRefused, ForeignValueSeen, InvalidationReceived
from coherent_cache.keys import key_digest
from coherent_cache.serializers import make_codec
from coherent_cache.wire import PREFIX_BYTES, envelope_prefix
from tests.unit.core.model import HEARTBEAT, MAX_STALENESS, World

LOCKS = []


def make_lock():
    LOCKS.append(nullcontext())
    return LOCKS[-1]


def new_instance(serializer="msgpack", **options):
    events = []
    instance = Instance(
        Settings(namespace="test", **options),
        make_codec(serializer),
        instance_id="me",
        lock=make_lock,
        rng=random.Random(0),
        emit=events.append,
    )
    instance.events = events
    return instance


# --- shards and limits ------------------------------------------------------------------------------------------------


def test_an_instance_has_what_it_was_given():
    instance = new_instance(shards=3)
    assert (instance.instance_id, instance.codec.name, instance.settings.shards) == ("me", "msgpack", 3)
    assert [shard.index for shard in instance.shards] == [0, 1, 2]
    assert {shard._max_staleness for shard in instance.shards} == {instance.settings.max_staleness}


def test_every_shard_has_a_lock_of_its_own_and_so_have_the_flights():
    LOCKS.clear()
    instance = new_instance(shards=3)
    assert len(LOCKS) == 4
    assert [instance.flights._lock, *[shard._lock for shard in instance.shards]] == LOCKS


@pytest.mark.parametrize(("total", "shares"), [(3, [1, 1, 1]), (10, [4, 3, 3]), (11, [4, 4, 3])])
def test_limits_are_divided_without_a_rest(total, shares):
    instance = new_instance(shards=3, max_entries=total, max_bytes=total, policy="fifo")
    assert [shard.tier.max_entries for shard in instance.shards] == shares
    assert [shard.tier.max_bytes for shard in instance.shards] == shares
    assert {shard.tier.policy for shard in instance.shards} == {"fifo"}


def test_bytes_need_no_limit():
    assert new_instance().shards[0].tier.max_bytes is None


def test_a_key_belongs_to_one_shard_by_its_bytes():
    instance = new_instance(shards=4)
    keys = [f"k{number}".encode() for number in range(100)]
    assert {instance.shard_of(key).index for key in keys} == {0, 1, 2, 3}
    assert [instance.shard_of(key) for key in keys] == [instance.shard_of(key) for key in keys]


# --- keys and values --------------------------------------------------------------------------------------------------


def test_facts_are_the_key_in_utf_8_and_the_prefix_of_its_envelopes():
    instance = new_instance(serializer="json")
    encoded, prefix = instance.facts("é")
    assert encoded == "é".encode()
    assert prefix == envelope_prefix(key_digest(encoded), instance.codec.code)
    assert len(prefix) == PREFIX_BYTES
    assert instance.facts("é") is instance.facts("é")
    assert instance.facts.cache_info().maxsize == CACHED_KEYS


def test_facts_check_the_key():
    with pytest.raises(InvalidKey):
        new_instance().facts("")
    with pytest.raises(TypeError):
        new_instance().facts([])


def test_a_foreign_value_raises_by_default():
    instance = new_instance()
    with pytest.raises(ForeignValue) as caught:
        instance.foreign("k", "not an envelope")
    assert (caught.value.key, caught.value.reason) == ("k", "not an envelope")
    assert instance.events == [ForeignValueSeen("k", "not an envelope")]
    assert instance.counters.errors == 1


def test_a_foreign_value_may_be_a_miss():
    instance = new_instance(on_foreign="miss")
    assert instance.foreign("k", "not an envelope") is None
    assert instance.events == [ForeignValueSeen("k", "not an envelope")]
    assert instance.counters.errors == 1


@pytest.mark.parametrize(
    ("copy_values", "value", "shared"),
    [
        (True, 1, True),
        (True, "text", True),
        (True, (1, "a"), True),
        (True, (1, []), False),
        (True, [1], False),
        (True, {"a": 1}, False),
        (False, [1], True),
        (False, 1, True),
    ],
)
def test_a_value_is_shared_if_nobody_can_change_it_or_nobody_minds(copy_values, value, shared):
    instance = new_instance(copy_values=copy_values)
    entry = instance.make_entry(instance.facts("k"), value, b"payload", 7, ("t",), 50.0)
    assert entry.value == (value if shared else b"payload")
    assert (entry.deadline, entry.coded_deadline) == ((50.0, -inf) if shared else (-inf, 50.0))
    assert (entry.seq, entry.tags, entry.expires_at) == (7, ("t",), 50.0)


def test_an_entry_is_as_large_as_key_payload_and_what_it_costs():
    instance = new_instance()
    assert instance.make_entry(instance.facts("é"), 1, b"12345", 7, (), inf).size == 2 + 5 + ENTRY_OVERHEAD_BYTES


# --- what users ask ---------------------------------------------------------------------------------------------------


@pytest.fixture
def world():
    return World(shards=2)


def test_the_state_is_the_worst_of_the_shards(world):
    a, _ = world
    now = world.clock.now
    assert a.instance.state(now) is State.COHERENT
    a.instance.shards[1].suspect("late")
    assert a.instance.state(now) is State.SUSPECT
    assert a.instance.state(now + MAX_STALENESS + 0.1) is State.DISCONNECTED


@pytest.mark.parametrize("best", range(len(SEVERITY)))
def test_the_worst_state_is_the_one_that_serves_least(best):
    states = list(SEVERITY[best:])
    assert worst(states) is worst(states[::-1]) is SEVERITY[-1]
    assert worst([SEVERITY[0], SEVERITY[best]]) is SEVERITY[best]
    assert SEVERITY == (State.COHERENT, State.SUSPECT, State.CONNECTING, State.DISCONNECTED)


def test_without_a_local_tier_every_read_is_coherent():
    assert new_instance(local_enabled=False).state(0.0) is State.COHERENT
    assert new_instance().state(0.0) is State.CONNECTING


def test_the_horizon_is_as_old_as_the_oldest_shards(world):
    a, _ = world
    assert a.instance.horizon_age(world.clock.now + 2) == 2
    a.instance.shards[0].tier.horizon -= 1
    assert a.instance.horizon_age(world.clock.now) == 1
    assert new_instance().horizon_age(0.0) == inf


def test_clear_local_empties_every_shard(world):
    a, b = world
    keys = [f"k{number}" for number in range(10)]
    a.store(dict.fromkeys(keys, 1)).run()
    assert a.instance.clear_local() == 10
    assert a.instance.clear_local() == 0
    assert b.instance.clear_local() == 0


def test_trace_is_switched_for_every_shard(world):
    a, b = world
    keys = [f"k{number}" for number in range(10)]
    a.instance.set_trace(enabled=True)
    fill = a.read(*keys).execute()
    b.store(dict.fromkeys(keys, 1)).run()
    late = b.read(*keys)
    a.settle()
    slow = a.read(*keys).execute()
    b.store(dict.fromkeys(keys, 2)).run()
    a.settle()
    for flight in (fill, slow, late):
        flight.run()
    assert {event.shard for event in a.events_of(InvalidationReceived)} == {0, 1}
    assert {event.shard for event in a.events_of(FillRefused)} == {0, 1}
    a.instance.set_trace(enabled=False)
    seen = len(a.events)
    b.store(dict.fromkeys(keys, 3)).run()
    a.settle()
    assert len(a.events) == seen


# --- stats ------------------------------------------------------------------------------------------------------------


def test_the_stats_of_a_new_instance():
    stats = new_instance(shards=2).stats(0.0)
    assert stats == CacheStats(
        enabled=True,
        size=0,
        max_entries=10_000,
        bytes=0,
        hits=0,
        misses=0,
        hit_rate=0.0,
        total_requests=0,
        redis_hits=0,
        loads=0,
        load_failures=0,
        stale_served=0,
        evictions=0,
        expirations=0,
        removals={cause.value: 0 for cause in RemovalCause},
        invalidations_received=0,
        invalidations_applied=0,
        invalidations_ignored=0,
        fills_refused=0,
        resyncs=0,
        replays=0,
        flushes=0,
        errors=0,
        propagation_p50=None,
        propagation_p99=None,
        propagation_counts=(0,) * (len(LAG_BUCKETS) + 1),
        propagation_sum=0.0,
        state="connecting",
        horizon_age=inf,
        shard_states=("connecting", "connecting"),
        shard_horizon_ages=(inf, inf),
    )
    remote = new_instance(local_enabled=False).stats(0.0)
    assert (remote.enabled, remote.shard_states, remote.shard_horizon_ages) == (False, (), ())


def test_stats_add_up_the_shards():
    world = World(shards=2, max_entries=4)
    a, b = world
    keys = [f"k{number}" for number in range(10)]
    a.store(dict.fromkeys(keys, 1)).run()  # 10 into 4 places
    a.settle()
    held = [key for key in keys if a.held(key) is not None]
    for key in held:
        assert a.hit(key) == 1
    a.instance.counters.misses += 6
    a.instance.counters.loads += 3
    a.get(next(key for key in keys if key not in held))
    fill = a.read(*keys).execute()
    b.store(dict.fromkeys(keys, 2)).run()
    a.settle()
    fill.run()
    a.store({"short": 1}, ttl=0.5).run()
    a.settle()
    a.beat()
    stats = a.instance.stats(world.clock.now)
    counts = [shard.tier.counts for shard in a.instance.shards]
    assert (stats.size, stats.max_entries) == (0, 4)
    assert stats.bytes == 0
    assert (stats.hits, stats.misses, stats.total_requests, stats.hit_rate) == (4, 6, 10, 0.4)
    assert (stats.redis_hits, stats.loads) == (11, 3)
    assert stats.evictions == sum(count.removed[RemovalCause.SIZE] for count in counts) >= 6
    assert stats.expirations == 1
    assert stats.removals["invalidated"] == 4
    assert sum(stats.removals.values()) == sum(count.inserts for count in counts)
    received, applied = stats.invalidations_received, stats.invalidations_applied
    assert (received, applied, stats.invalidations_ignored) == (5, 2, 3)
    assert stats.fills_refused == 10
    assert (stats.resyncs, stats.replays, stats.flushes, stats.errors) == (2, 0, 0, 0)
    assert (stats.state, stats.horizon_age) == ("coherent", 0.0)
    assert stats.as_dict()["removals"] == stats.removals


def test_stats_give_the_worst_shards_delays(world):
    a, b = world
    b.store({f"k{number}": 1 for number in range(10)}).run()
    world.clock.now += 0.25
    a.link.items.rotate(-1)
    a.deliver()
    world.clock.now += 0.25
    a.deliver()
    stats = a.instance.stats(world.clock.now)
    assert stats.propagation_p50 == stats.propagation_p99 == pytest.approx(0.5)


def test_stats_count_what_a_flush_removed(world):
    a, _ = world
    a.store({"k": 1, "x": 2}).run()
    world.server.flushall()
    a.read("k", "x").run()
    stats = a.instance.stats(world.clock.now + HEARTBEAT)
    assert stats.removals["flushed"] == 2
    assert stats.state == "connecting"
