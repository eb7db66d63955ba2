"""Loads, stopped between request and reply (P11): what they ask, what they keep, and what they leave behind.

As in ``test_operations``: two members, ``a`` and ``b``, share a fake Redis. What users see is in ``tests/contract``,
the interleavings are in ``tests/simulation``.
"""

from __future__ import annotations

from math import inf

import pytest

from coherent_cache.core import loading, loading_many
from coherent_cache.core.leasing import LoaderError, is_older
from coherent_cache.core.load_options import LoadOptions, takes_context
from coherent_cache.core.loading import LoadCall
from coherent_cache.core.operations import MISSING
from coherent_cache.core.requests import (
    FillRequest,
    LeaseRequest,
    LoadRequest,
    ReadRequest,
    ReleaseRequest,
    RenewRequest,
    Spawned,
    SpawnRequest,
    WaitRequest,
    Woken,
)
from coherent_cache.errors import (
    CacheUnavailable,
    ConfigError,
    ForeignValue,
    LoaderTimeout,
    NamespaceMismatch,
    SerializationError,
)
from coherent_cache.events import LeaseVoided, LoadFailed, StaleServed
from coherent_cache.versions import Version
from coherent_cache.wire import CODE_LEASE, CODE_NOTHING, Kind, encode_content
from tests.unit.core.model import EPOCH, envelope

REFUSED = CacheUnavailable("out of memory")
TIMED_OUT = CacheUnavailable("timed out", maybe_applied=True)


@pytest.fixture
def world(new_world):
    return new_world(lease=9.0, lease_wait=30.0)


def load(member, loader, key="k", *, least=None, **options):
    """Begin a load; ``loader`` is a value, an exception to raise, or a function."""

    def call(context):
        if isinstance(loader, BaseException):
            raise loader
        return loader(context) if callable(loader) else loader

    options = LoadOptions(**({"ttl": None} | options))
    return member.begin(loading.get_or_set, LoadCall(key, call, options, member.clock.now, least))


def many(member, loader, *keys, **options):
    return member.begin(loading_many.get_or_set_many, keys, loader, LoadOptions(**({"ttl": None} | options)))


def until(flight, kind):
    """Let an operation go on to its next request of a kind."""
    while type(flight.requests[0]) is not kind:
        flight.finish()
    return flight


# --- one load ---------------------------------------------------------------------------------------------------------


def test_a_load_reads_asks_for_the_lease_loads_and_fills(world):
    a, b = world
    flight = load(a, "v", ttl=60.0, tags=("t",))
    asked = []
    while not flight.done:
        asked.append(type(flight.requests[0]))
        flight.finish()
    assert asked == [ReadRequest, LeaseRequest, LoadRequest, FillRequest]
    version = flight.result.version
    assert flight.result == ("v", version, a.clock.now + 60, "loader")
    assert world.server.live("k").tags == ("t",)
    assert a.held("k").seq == version.seq
    a.settle()
    assert a.hit("k") == "v"
    assert load(b, "other").run()[:2] == ("v", version)
    assert a.instance.counters.loads == 1


def test_the_lease_lies_where_the_value_will_be_one_above_the_clock(world):
    a, b = world
    b.set("x", 1)
    flight = until(load(a, "v"), LoadRequest)
    stored, _ = world.server.shards[0].values["k"]
    (lease,) = flight.requests[0].leases
    assert stored[16] == CODE_LEASE
    assert stored.endswith(lease.content)
    assert (lease.seq, lease.version) == (world.server.shards[0].seq + 1, 0)
    assert b.get("k") == b.get("nothing")
    flight.run()


def test_a_loader_that_raises_gives_the_lease_up_and_tells(world):
    a, b = world
    flight = until(load(a, KeyError("row")), LoadRequest)
    waiting = until(load(b, "mine"), WaitRequest)
    waiter = waiting.requests[0].waiter
    flight.finish()
    assert isinstance(flight.requests[0], ReleaseRequest)
    with pytest.raises(KeyError):
        flight.finish()
    assert not waiter.woken
    b.settle()
    assert waiter.woken, "by the message"
    assert waiting.run().value == "mine"
    assert a.events_of(LoadFailed) == [LoadFailed("k", "KeyError")]
    assert a.instance.counters.load_failures == 1


@pytest.mark.parametrize("error", [REFUSED, TIMED_OUT])
def test_giving_up_may_fail_and_the_loaders_error_counts(world, error):
    a, _ = world
    flight = until(load(a, KeyError("row")), ReleaseRequest)
    with pytest.raises(KeyError):
        flight.fail(error)


def test_an_interruption_gives_the_lease_up_and_wakes_who_waits_here(world):
    a, _ = world
    flight = until(load(a, "v"), LoadRequest)
    follower = until(load(a, "mine"), WaitRequest)
    flight.fail(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        flight.finish()
    assert follower.run() is None, "it looks again"
    assert world.server.shards[0].values == {}


def test_an_operation_that_is_abandoned_ends_its_flight(world):
    a, _ = world
    flight = until(load(a, "v"), LoadRequest)
    flight.close()
    assert len(a.instance.flights) == 0


@pytest.mark.parametrize("stage", [ReadRequest, LeaseRequest, FillRequest])
def test_an_error_of_another_kind_comes_up_and_leaves_no_flight(world, stage):
    a, _ = world
    flight = until(load(a, "v"), stage)
    with pytest.raises(NamespaceMismatch):
        flight.fail(NamespaceMismatch("shop", "1/2", "1/1"))


def test_redis_that_reads_and_does_not_write_is_loaded_for_without_storing(world):
    a, _ = world
    flight = until(load(a, "v"), LeaseRequest)
    follower = until(load(a, "mine"), WaitRequest)
    flight.fail(REFUSED)
    assert flight.requests[0].leases == ()
    assert flight.run().version is None
    assert follower.run().value == "v", "it had asked before the loader was called"
    assert world.server.live("k") is None


def test_redis_that_is_away_is_an_error_for_all(world):
    a, _ = world
    flight = until(load(a, "v"), LeaseRequest)
    follower = until(load(a, "mine"), WaitRequest)
    with pytest.raises(CacheUnavailable):
        flight.fail(TIMED_OUT)
    with pytest.raises(CacheUnavailable):
        follower.finish()


@pytest.mark.parametrize("error", [REFUSED, TIMED_OUT])
def test_a_fill_that_fails_costs_its_caller_nothing(world, error):
    a, _ = world
    flight = until(load(a, "v"), FillRequest).fail(error)
    assert isinstance(flight.requests[0], ReleaseRequest)
    assert flight.run() == ("v", None, inf, "loader")
    assert a.held("k") is None


@pytest.mark.parametrize("invalidate", ["delete", "clear", "tag", "set"])
def test_i3_i14_a_fill_whose_lease_was_voided_is_refused_in_both_tiers(world, invalidate):
    a, b = world
    flight = until(load(a, "old", tags=("t",)), LoadRequest)
    match invalidate:
        case "delete":
            b.delete("k").run()
        case "clear":
            b.clear().run()
        case "tag":
            b.invalidate("t").run()
        case _:
            b.set("k", "new")
    assert flight.run() == ("old", None, inf, "loader")
    assert a.held("k") is None
    assert a.get("k") != "old"
    assert a.events_of(LeaseVoided) == [LeaseVoided(0, "k")]
    stored, _ = world.server.shards[0].values.get("k", (b"", 0))
    assert stored[16:17] != bytes((CODE_LEASE,)) or invalidate == "clear", "nobody waits for it"


def test_a_fill_is_not_kept_locally_if_a_message_passed_it(world):
    a, b = world
    flight = until(load(a, "old"), FillRequest).execute()
    b.set("k", "new")
    a.settle()
    assert flight.run().value == "old"
    assert a.held("k") is None


# --- in one process ---------------------------------------------------------------------------------------------------


def test_followers_who_asked_before_the_loader_was_called_get_its_value(world):
    a, _ = world
    leader = until(load(a, ["v"]), LeaseRequest)
    early = until(load(a, "mine"), WaitRequest)
    until(leader, LoadRequest)
    late = until(load(a, "mine"), WaitRequest)
    value = leader.run().value
    assert early.run().value == ["v"]
    assert early.result.value is not value, "a copy of its own"
    assert late.run() is None, "it looks again"


def test_early_followers_are_told_that_there_is_no_such_thing(world):
    a, _ = world
    leader = until(load(a, MISSING), LeaseRequest)
    early = until(load(a, "mine"), WaitRequest)
    assert leader.run().value is MISSING
    assert early.run().value is MISSING


def test_followers_get_the_loaders_error(world):
    a, _ = world
    error = KeyError("row")
    leader = until(load(a, error), LoadRequest)
    follower = until(load(a, "mine"), WaitRequest)
    with pytest.raises(KeyError):
        leader.run()
    with pytest.raises(KeyError) as caught:
        follower.run()
    assert caught.value is error


def test_a_follower_that_is_interrupted_is_forgotten(world):
    a, _ = world
    leader = until(load(a, "v"), LoadRequest)
    flight = a.instance.flights._flights["k"]
    followers = (
        until(load(a, "mine"), WaitRequest),
        until(many(a, lambda keys: dict.fromkeys(keys, 1), "k", "l"), WaitRequest),
    )
    assert len(flight.waiters) == 2
    for follower in followers:
        with pytest.raises(KeyboardInterrupt):
            follower.fail(KeyboardInterrupt())
    assert not flight.waiters
    assert leader.run().value == "v"


# --- in the fleet -----------------------------------------------------------------------------------------------------


def test_who_finds_another_lease_waits_for_its_end_and_asks_again(world):
    a, b = world
    holder = until(load(a, "v"), LoadRequest)
    waiting = until(load(b, "mine"), WaitRequest)
    assert waiting.requests[0].until == pytest.approx(b.clock.now + 9.0, abs=0.1)
    holder.run()
    b.settle()
    assert waiting.requests[0].waiter.woken
    assert waiting.finish().finish().done
    assert waiting.result[0] == "v"
    assert b.held("k") is not None


@pytest.mark.parametrize("wakes", ["clear", "resync", "forgotten"])
def test_a_clear_a_resync_and_a_lost_history_wake_who_waits(world, wakes):
    a, b = world
    holder = until(load(a, "v"), LoadRequest)
    waiting = until(load(b, "mine"), WaitRequest)
    waiter = waiting.requests[0].waiter
    if wakes == "clear":
        a.clear().run()
        b.settle()
    elif wakes == "resync":
        b.cut()
        b.connect()
    else:
        world.server.flushall()
        b.beat()
    assert waiter.woken
    holder.close()
    waiting.close()


def test_the_time_of_a_lease_ends_a_wait(world):
    a, b = world
    holder = until(load(a, "v"), LoadRequest)
    waiting = until(load(b, "mine"), WaitRequest)
    b.clock.now += 9.1
    waiting.finish()
    assert waiting.run().value == "mine"
    assert holder.run() == ("v", None, inf, "loader")
    assert a.get("k") == "mine"


def test_a_renewed_lease_is_waited_for_lease_wait_and_then_loaded_for_without_storing(world):
    a, b = world
    holder = until(load(a, "v"), LoadRequest)
    (lease,) = holder.requests[0].leases
    waiting = load(b, "mine")
    while type(waiting.requests[0]) is not LoadRequest:
        if type(waiting.requests[0]) is WaitRequest:
            b.clock.now += 8.0
            (renewed,) = world.server.execute([RenewRequest(0, lease, 9000)])
            assert renewed.held
        waiting.finish()
    assert waiting.requests[0].leases == ()
    assert waiting.run() == ("mine", None, inf, "loader")
    assert holder.run().version is not None


def test_who_hears_no_messages_asks_again_after_growing_pauses(new_world):
    world = new_world(local_enabled=False)
    a, b = world
    holder = until(load(a, "v"), LoadRequest)
    waiting, pauses = until(load(b, "mine"), WaitRequest), []
    for _ in range(7):
        pauses.append(waiting.requests[0].until - b.clock.now)
        waiting.answer(Woken(False, b.clock.now)).finish()
    assert pauses == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    holder.run()
    until(waiting, LeaseRequest)
    assert waiting.run()[0] == "v"


def test_what_is_there_meanwhile_is_returned(world):
    a, b = world
    flight = until(load(a, "mine"), LeaseRequest)
    b.set("k", ["v"])
    assert flight.run()[0] == ["v"]
    assert a.instance.counters.loads == 0
    assert a.instance.counters.redis_hits == 1


def test_bytes_of_another_program(new_world):
    world = new_world()
    a, _ = world
    flight = until(load(a, "v"), LeaseRequest)
    world.server.foreign("k", b"raw")
    with pytest.raises(ForeignValue):
        flight.finish()
    tolerant, _ = new_world(on_foreign="miss")
    tolerant.server.foreign("k", b"raw")
    assert load(tolerant, "v").run().version is not None


def test_a_value_that_only_redis_takes_for_alive_is_loaded_for_without_storing(new_world):
    """A damaged envelope, where such bytes are to be a miss."""
    world = new_world(on_foreign="miss")
    a, b = world
    b.set("x", 1)
    data = world.server.shards[0]
    damaged = bytearray(envelope(a, "k", "v", data.seq, epoch=data.epoch))
    damaged[6] ^= 1  # the digest
    world.server.foreign("k", bytes(damaged))
    assert load(a, "v").run() == ("v", None, inf, "loader")


def test_a_damaged_answer_is_no_answer(new_world):
    """Neither "no such thing" for a read, nor a right that another program's bytes keep from the holder."""
    world = new_world(on_foreign="miss")
    a, b = world
    load(a, MISSING, negative_ttl=5.0).run()
    stored, _ = world.server.shards[0].values["k"]
    world.server.foreign("k", stored[:17] + b"\0" + stored[18:])
    assert load(b, "v").run().value == "v"
    strict, _ = new_world()
    flight = until(load(strict, "v"), LeaseRequest)
    strict.server.foreign("k", b"raw")
    with pytest.raises(ForeignValue, match="not an envelope"):
        flight.finish()


# --- options ----------------------------------------------------------------------------------------------------------


def test_no_such_thing_is_stored_if_asked_and_read_in_one_round_trip(world):
    a, b = world
    assert load(a, MISSING, negative_ttl=5.0, tags=("t",)).run().value is MISSING
    assert world.server.shards[0].values["k"][0][16] == CODE_NOTHING
    assert a.held("k") is None
    flight = load(b, "mine")
    flight.finish()
    assert flight.done
    assert flight.result.value is MISSING
    b.invalidate("t").run()
    assert load(b, "mine").run().value == "mine"


@pytest.mark.parametrize("lost", ["damaged", "tag elsewhere", "floor", "truncated"])
def test_no_such_thing_is_no_answer_if_there_is_a_doubt(world, lost):
    a, b = world
    load(a, MISSING, negative_ttl=5.0, tags=("t",)).run()
    stored, expires = world.server.shards[0].values["k"]
    match lost:
        case "damaged":
            world.server.shards[0].values["k"] = (stored[:17] + b"\0" + stored[18:], expires)
            with pytest.raises(ForeignValue):
                load(a, "mine").run()
            return
        case "truncated":
            world.server.shards[0].values["k"] = (stored[:10], expires)
            with pytest.raises(ForeignValue):
                load(a, "mine").run()
            return
        case "tag elsewhere":
            b.invalidate("u").run()
            flight = until(load(a, "mine"), LeaseRequest)
            assert flight.finish().done, "the lease's script knows better"
            assert flight.result.value is MISSING
        case _:
            b.clear().run()
            assert load(a, "mine").run().value == "mine"


def test_what_cannot_be_encoded_gives_the_lease_up(world):
    a, _ = world
    with pytest.raises(SerializationError):
        load(a, object()).run()
    assert world.server.shards[0].values == {}
    assert a.instance.counters.load_failures == 1


def test_jitter_and_local_ttl(new_world):
    world = new_world(local_ttl=5.0)
    a, _ = world
    result = load(a, "v", ttl=100.0, jitter=0.5).run()
    assert a.clock.now + 50 <= result.expires_at < a.clock.now + 100
    assert a.held("k").expires_at == a.clock.now + 5


def known(member, value="old", seconds=100.0):
    """Let a member know a value whose time is over."""
    member.beat()
    load(member, value, ttl=1.0).run()
    member.settle()
    member.shard.keep("k", seconds, member.clock.now)
    member.clock.now += 1.5
    member.shard.remove_expired("k", member.clock.now)


def test_fail_safe_serves_the_last_known_value(world):
    a, _ = world
    known(a, ["old"])
    assert load(a, KeyError(), fail_safe=100.0, throttle=2.0).run() == (
        ["old"],
        None,
        a.shard.kept.entries["k"].expires_at,
        "stale",
    )
    assert a.events_of(StaleServed) == [StaleServed("k", "KeyError")]
    call = LoadCall("k", lambda _: 1, LoadOptions(ttl=None, fail_safe=100.0), a.clock.now)
    assert loading.throttled(a.instance, call).value == ["old"]
    assert loading.throttled(a.instance, call._replace(asked_at=a.clock.now + 2.0)) is None
    assert loading.throttled(a.instance, call._replace(key="other")) is None
    flight = load(a, "v", fail_safe=100.0)
    assert flight.fail(REFUSED).run().tier == "stale"
    a.clock.now += 200
    with pytest.raises(KeyError):
        load(a, KeyError(), fail_safe=100.0).run()


def test_last_known_values_go_when_they_are_known_to_be_outdated(world):
    a, b = world
    for outdate in (
        lambda: b.set("k", "new"),
        lambda: a.set("k", "new"),
        lambda: b.delete("k").run(),
        lambda: b.clear().run(),
        a.instance.clear_local,
    ):
        known(a)
        assert a.shard.last_known("k", a.clock.now) is not None
        outdate()
        a.settle()
        assert a.shard.last_known("k", a.clock.now) is None
        b.delete("k").run()
        a.settle()


def test_a_flush_keeps_last_known_values_until_anything_is_heard_of_their_key(world):
    a, b = world
    known(a)
    world.server.flushall()
    a.beat()
    assert a.shard.last_known("k", a.clock.now).value == "old"
    b.set("k", "new")
    a.settle()
    assert a.shard.last_known("k", a.clock.now) is None, "its version began again at 1"


def test_what_is_expired_is_not_kept_and_kept_values_are_swept(world):
    a, _ = world
    known(a, seconds=1.0)
    a.shard.keep("k", 100.0, a.clock.now)
    a.clock.now += 1.0
    assert a.shard.last_known("k", a.clock.now) is None
    a.shard.sweep(a.clock.now)
    assert a.shard.kept.entries == {}


def test_an_own_write_of_unknown_outcome_forgets_the_last_known_value(world):
    a, _ = world
    known(a)
    with pytest.raises(CacheUnavailable):
        a.store({"k": 1}).fail(TIMED_OUT)
    assert a.shard.last_known("k", a.clock.now) is None


def test_an_error_is_remembered_if_asked(world):
    a, b = world
    error = KeyError("row")
    with pytest.raises(KeyError):
        load(a, error, error_ttl=5.0).run()
    flight = load(a, "v", error_ttl=5.0)
    with pytest.raises(KeyError) as caught:
        flight.run()
    assert caught.value is error
    a.clock.now += 5.0
    assert load(a, "v", error_ttl=5.0).run().value == "v"
    with pytest.raises(CacheUnavailable):
        load(b, "v", error_ttl=5.0).fail(REFUSED).run()
    assert b.instance.flights.error_of("k", b.clock.now) is None


def test_timed_loads_go_to_the_background(world):
    a, _ = world
    flight = load(a, "v", hard_timeout=2.0)
    until(flight, WaitRequest)
    assert flight.requests[0].until == a.clock.now + 2.0
    with pytest.raises(LoaderTimeout):
        flight.finish()
    assert a.spawned.pop().run().value == "v"
    assert a.get("k") == "v"


def test_a_soft_timeout_serves_what_was_known(world):
    a, _ = world
    known(a)
    flight = until(load(a, "new", fail_safe=100.0, soft_timeout=0.5, hard_timeout=2.0), WaitRequest)
    assert flight.requests[0].until == a.clock.now + 0.5
    assert flight.run().tier == "stale"
    a.spawned.pop().run()
    assert a.get("k") == "new"


def test_without_a_thread_to_spare_a_timed_load_runs_in_the_foreground(world):
    a, _ = world
    flight = until(load(a, "v", hard_timeout=2.0), SpawnRequest)
    assert flight.answer(Spawned(False)).run().value == "v"


def test_min_version(world):
    a, b = world
    version = b.set("k", 1)
    assert load(a, 2, least=version).run()[0] == 1
    later = Version(version.epoch, version.seq + 5)
    assert load(a, 2, least=later).run() == (2, None, inf, "loader")
    assert load(a, 2, least=Version(EPOCH, 99)).run()[0] == 1
    assert not is_older(None, later)


# --- ahead of time ----------------------------------------------------------------------------------------------------


def refreshing(member, loader, seq, **options):
    assert member.instance.flights.claim_refresh("k", member.clock.now)
    call = LoadCall("k", loader, LoadOptions(**({"ttl": None} | options)), member.clock.now)
    return member.begin(loading.refresh, call, seq)


def test_a_refresh_replaces_the_version_that_was_there(world):
    a, b = world
    seq = b.set("k", "old").seq
    flight = until(refreshing(a, lambda _: "new", seq), LoadRequest)
    (lease,) = flight.requests[0].leases
    assert lease.version == seq
    assert b.get("k") == "old", "its readers do not notice"
    other = refreshing(b, lambda _: "other", seq)
    assert other.finish().done, "one refreshes"
    assert not b.instance.flights.claim_refresh("k", b.clock.now)
    flight.run()
    assert world.server.shards[0].refreshes == {}
    assert a.get("k") == "new"
    assert a.instance.flights.claim_refresh("k", a.clock.now + 0.001)


@pytest.mark.parametrize("meanwhile", ["set", "delete", "touch"])
def test_i3_a_refresh_replaces_nothing_else(world, meanwhile):
    a, b = world
    seq = b.set("k", "old").seq
    flight = until(refreshing(a, lambda _: "outdated", seq), LoadRequest)
    if meanwhile == "set":
        b.set("k", "new")
    elif meanwhile == "delete":
        b.delete("k").run()
    else:
        b.touch("k", 60.0).run()
    flight.run()
    assert a.get("k") != "outdated"
    assert world.server.shards[0].refreshes == {}


def test_a_refresh_of_what_has_changed_asks_once(world):
    a, b = world
    seq = b.set("k", "old").seq
    b.set("k", "new")
    assert refreshing(a, lambda _: "outdated", seq).finish().done
    assert a.held("k").seq > seq, "what it was told of is kept"


@pytest.mark.parametrize("failure", ["loader", "redis", "release"])
def test_a_refresh_that_fails_is_over_for_a_while(world, failure):
    a, b = world

    def loader(_):
        raise KeyError

    seq = b.set("k", "old").seq
    flight = refreshing(a, loader, seq)
    if failure == "redis":
        flight.fail(REFUSED)
    elif failure == "release":
        until(flight, RenewRequest).fail(REFUSED)
    while not flight.done:
        flight.finish()
    assert not a.instance.flights.claim_refresh("k", a.clock.now + 1.0)
    assert a.instance.flights.claim_refresh("k", a.clock.now + 9.0)
    assert b.get("k") == "old"


# --- many -------------------------------------------------------------------------------------------------------------


def test_many_keys_are_loaded_by_one_call_in_three_round_trips(world):
    a, b = world
    b.set("x", 0)
    called = []

    def loader(keys):
        called.append(keys)
        return {"k": 1}

    flight = many(a, loader, "x", "k", "l", negative_ttl=5.0)
    rounds = 0
    while not flight.done:
        flight.finish()
        rounds += 1
    assert rounds == 4, "read, leases, loader, fills"
    assert flight.result == {"x": 0, "k": 1, "l": MISSING}
    assert called == [["k", "l"]]
    assert many(b, None, "k", "l").run() == {"k": 1, "l": MISSING}


def test_many_without_negative_ttl_give_the_rest_up(world):
    a, _ = world
    assert many(a, lambda _: {}, "k", "l").run() == {"k": MISSING, "l": MISSING}
    assert world.server.shards[0].values == {}


def test_many_wait_for_others_after_their_own(world):
    a, b = world
    elsewhere, here = until(load(b, "b's", "e"), LoadRequest), until(load(a, "a's", "h"), LoadRequest)
    flight = until(many(a, lambda keys: dict.fromkeys(keys, "mine"), "e", "h", "o"), LoadRequest)
    assert flight.requests[0].leases[0].key == "o"
    until(flight, WaitRequest)
    assert a.get("o") == "mine", "what is its own is stored"
    elsewhere.run()
    here.run()
    a.settle()
    assert flight.run() == {"e": "b's", "h": "a's", "o": "mine"}


def test_many_get_the_error_of_a_flight_they_wait_for(world):
    a, _ = world
    here = until(load(a, KeyError("row"), "h"), LoadRequest)
    flight = until(many(a, None, "h"), WaitRequest)
    with pytest.raises(KeyError):
        here.run()
    with pytest.raises(KeyError):
        flight.run()


@pytest.mark.parametrize("stage", [LeaseRequest, FillRequest, LoadRequest])
def test_many_and_failures_of_redis(world, stage):
    a, _ = world
    flight = until(many(a, lambda keys: dict.fromkeys(keys, 1), "k", "l"), stage)
    if stage is LoadRequest:
        with pytest.raises(KeyError):
            flight.fail(KeyError()).run()
        return
    assert flight.fail(REFUSED).run() == {"k": 1, "l": 1}
    assert world.server.live("k") is None


def test_many_and_a_redis_that_is_away(world):
    a, _ = world
    flight = until(many(a, None, "k", "l"), LeaseRequest)
    with pytest.raises(CacheUnavailable):
        flight.fail(TIMED_OUT)


def test_many_wait_for_lease_wait_at_most(new_world):
    world = new_world(lease_wait=0.0)
    a, b = world
    holder = until(load(b, "b's"), LoadRequest)
    assert many(a, lambda keys: dict.fromkeys(keys, "mine"), "k").run() == {"k": "mine"}
    holder.run()
    assert a.get("k") == "b's"


@pytest.mark.parametrize("returned", [[1], {"other": 1}])
def test_many_need_values_of_their_keys(world, returned):
    a, _ = world
    with pytest.raises(ConfigError, match="loader"):
        many(a, lambda _: returned, "k").run()
    assert world.server.shards[0].values == {}


# --- loaders ----------------------------------------------------------------------------------------------------------


def test_which_loaders_take_a_context():
    assert takes_context(lambda context: context)
    assert not takes_context(lambda: 1)
    assert not takes_context(lambda *args, **kwargs: 1)
    assert not takes_context(lambda x=1: x)
    assert not takes_context(min), "a builtin that does not tell"
    with pytest.raises(ConfigError, match="not 2"):
        takes_context(lambda a, b: 1)
    with pytest.raises(ConfigError, match="callable"):
        takes_context(5)


def test_a_loaders_error_is_carried_as_it_is():
    error = KeyError()
    assert LoaderError(error).error is error


def test_messages_of_leases_that_were_given_up_evict_nothing(world):
    a, b = world
    b.set("k", "v")
    a.get("k")
    world.server._advance(0, Kind.RELEASE, "b", ("k",))
    a.settle()
    assert a.hit("k") == "v"
    assert encode_content((), b"") == b"\x90\xc4\x00"


def test_a_flight_that_cannot_be_handed_over_ends(world):
    a, _ = world
    first = load(a, "v", hard_timeout=5.0).finish()
    with pytest.raises(MemoryError):
        first.fail(MemoryError())
    assert len(a.instance.flights) == 0
    assert load(a, "v").run().value == "v"


def test_what_interrupts_a_load_in_the_background_interrupts_who_began_it_and_nobody_else(world):
    a, _ = world
    first = until(load(a, "v", hard_timeout=5.0), WaitRequest)
    other = until(load(a, "mine"), WaitRequest)
    background = until(a.spawned.pop(), LoadRequest)
    with pytest.raises(SystemExit):
        background.fail(SystemExit()).run()
    with pytest.raises(SystemExit):
        first.finish()
    assert other.run() is None, "it looks again"


def test_who_waits_for_others_is_woken_when_it_is_over(world):
    a, b = world
    loading_there = until(load(b, "v"), LoadRequest)
    waiting = until(load(a, "mine"), WaitRequest)
    a.instance.wake_all()
    assert waiting.requests[0].waiter.woken
    loading_there.run()
    assert waiting.run().value == "v"
