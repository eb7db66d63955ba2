"""``get_or_set`` and its kin on every front, as a user sees them (P11). One Redis (fakeredis) per test, no sleeps."""

from __future__ import annotations

import threading
from functools import partial
from unittest.mock import Mock

import pytest

from coherent_cache import (
    MISSING,
    CacheUnavailable,
    ConfigError,
    InvalidKey,
    LoadContext,
    LoaderDeadlock,
    LoaderTimeout,
    LoadResult,
    SerializationError,
    ValueTooLarge,
    Version,
)
from coherent_cache.config import DEFAULT_TTL
from coherent_cache.runtime import clock
from integration.blocking import io_of
from tests.contract.fronts import messages_wait
from tests.contract.test_contract import eventually

PATIENCE = 10.0


class Slow:
    """A loader that runs until it is told to go on; begins with ``begun``.

    Attributes:
        calls: how often it was called.
    """

    def __init__(self, value="loaded", error=None):
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.calls = 0
        self._value, self._error = value, error

    def __call__(self):
        self.calls += 1
        self.begun.set()
        assert self.go_on.wait(PATIENCE)
        if self._error is not None:
            raise self._error
        return self._value


class Threads:
    """Calls in threads, with what came of them."""

    def __init__(self):
        self._threads = []
        self.results = []
        self.errors = []

    def start(self, call, count=1):
        for _ in range(count):
            thread = threading.Thread(target=self._run, args=(call,))
            self._threads.append(thread)
            thread.start()

    def _run(self, call):
        try:
            self.results.append(call())
        except Exception as error:  # noqa: BLE001  # to be looked at
            self.errors.append(error)

    def join(self):
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        return self.results


@pytest.fixture
def threads():
    started = Threads()
    yield started
    started.join()


def never():
    raise AssertionError("must not be called")


# -- one load ----------------------------------------------------------------------------------------------------------


def test_what_is_nowhere_is_loaded_once_and_then_there(make):
    here, there = make(), make()
    loader = Mock(return_value={"a": [1]})
    assert here.get_or_set("k", loader) == {"a": [1]}
    assert here.get_or_set("k", never) == {"a": [1]}
    assert there.get_or_set("k", never) == {"a": [1]}
    assert there.get("k") == {"a": [1]}
    loader.assert_called_once_with()
    assert (here.stats().loads, there.stats().loads) == (1, 0)
    assert here.get_entry("k").expires_in <= DEFAULT_TTL


def test_none_is_a_value(cache):
    assert cache.get_or_set("k", lambda: None) is None
    assert cache.get_or_set("k", never) is None
    assert cache.get("k", "default") is None


def test_each_caller_may_change_what_it_got(cache):
    loaded = cache.get_or_set("k", lambda: [1])
    loaded.append(2)
    assert cache.get_or_set("k", never) == [1]


def test_many_threads_of_two_instances_load_once(make, threads):
    loader = Slow()
    for instance in (make(), make()):
        threads.start(partial(instance.get_or_set, "k", loader), count=10)
    assert loader.begun.wait(PATIENCE)
    loader.go_on.set()
    assert threads.join() == ["loaded"] * 20
    assert loader.calls == 1


def test_what_a_loader_raises_reaches_all_who_wait_once_and_leaves_nothing(make, threads):
    here, there = make(), make()
    loader = Slow(error=KeyError("no row"))
    threads.start(partial(here.get_or_set, "k", loader), count=5)
    assert loader.begun.wait(PATIENCE)
    eventually(lambda: len(here._runtime.instance.flights._flights["k"].waiters) == 4, "the others wait")
    loader.go_on.set()
    threads.join()
    assert [error.args for error in threads.errors] == [("no row",)] * 5
    assert loader.calls == 1
    assert there.get_or_set("k", lambda: "at once") == "at once", "no lease is left behind"
    assert here.stats().load_failures == 1


def test_who_waits_elsewhere_loads_when_the_loader_fails(make, threads):
    here, there = make(lease=60), make(lease=60)
    loader = Slow(error=KeyError("no row"))
    threads.start(partial(here.get_or_set, "k", loader))
    assert loader.begun.wait(PATIENCE)
    threads.start(partial(there.get_or_set, "k", lambda: "mine"))
    eventually(lambda: there._shard._waiters, "it waits")
    loader.go_on.set()
    assert threads.join() == ["mine"]


def test_an_interrupted_loader_does_not_interrupt_those_who_wait(cache, threads):
    loader = Slow()

    def interrupted():
        loader()
        raise KeyboardInterrupt

    def ask():
        try:
            return cache.get_or_set("k", interrupted)
        except KeyboardInterrupt:
            return "interrupted"

    threads.start(ask)
    assert loader.begun.wait(PATIENCE)
    threads.start(partial(cache.get_or_set, "k", lambda: "mine"))
    eventually(lambda: cache._runtime.instance.flights._flights["k"].waiters, "it waits")
    loader.go_on.set()
    assert sorted(threads.join()) == ["interrupted", "mine"]


def test_a_dead_holders_lease_ends_with_its_time(make, threads):
    dead, alive = make(lease=0.2), make(lease=0.2)
    loader = Slow()
    dead._runtime._renewals.stop(PATIENCE)  # as if its process were gone
    threads.start(partial(dead.get_or_set, "k", loader))
    assert loader.begun.wait(PATIENCE)
    assert alive.get_or_set("k", lambda: "other") == "other"
    loader.go_on.set()
    assert threads.join() == ["loaded"], "its caller gets it"
    assert alive.get("k", max_staleness=0) == "other", "and nobody else"
    assert dead.stats().fills_refused == 1


def test_a_lease_is_renewed_as_long_as_the_loader_runs(make, threads):
    here, there = make(lease=0.15), make(lease=0.15)
    loader = Slow()
    threads.start(partial(here.get_or_set, "k", loader))
    assert loader.begun.wait(PATIENCE)
    renewed = Mock(wraps=here._runtime._renewals._execute)
    here._runtime._renewals._execute = renewed
    eventually(lambda: renewed.call_count >= 6, "twice its time is over")
    threads.start(partial(there.get_or_set, "k", never))
    loader.go_on.set()
    assert threads.join() == ["loaded", "loaded"]


def test_who_has_waited_for_lease_wait_loads_for_itself_and_stores_nothing(make, threads):
    here, there = make(lease=60), make(lease=60, lease_wait=0.05)
    loader = Slow()
    threads.start(partial(here.get_or_set, "k", loader))
    assert loader.begun.wait(PATIENCE)
    assert there.get_or_set("k", lambda: "mine") == "mine"
    assert there.get("k") is None
    loader.go_on.set()
    assert threads.join() == ["loaded"]
    assert there.get("k", max_staleness=0) == "loaded"


def test_without_a_local_tier(make, threads):
    here, there = make(local_enabled=False), make(local_enabled=False)
    loader = Slow()
    for instance in (here, there):
        threads.start(partial(instance.get_or_set, "k", loader), count=3)
    assert loader.begun.wait(PATIENCE)
    loader.go_on.set()
    assert threads.join() == ["loaded"] * 6
    assert loader.calls == 1


def test_several_shards(make):
    here, there = make(shards=4, namespace="sharded"), make(shards=4, namespace="sharded")
    for number in range(20):
        assert here.get_or_set(f"k{number}", lambda number=number: number) == number
        assert there.get_or_set(f"k{number}", never) == number


# -- fencing (I3, I14) -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    "invalidate",
    [
        lambda cache: cache.delete("k"),
        lambda cache: cache.set("k", "new"),
        lambda cache: cache.set_many({"k": "new", "l": 1}),
        lambda cache: cache.delete_many(["k", "l"]),
        lambda cache: cache.clear(),
        lambda cache: cache.invalidate_tags("t", "u"),
        lambda cache: cache.update("k", lambda _: "new"),
    ],
    ids=["delete", "set", "set_many", "delete_many", "clear", "invalidate_tags", "update"],
)
def test_i3_i14_what_was_loaded_before_an_invalidation_is_stored_in_neither_tier(make, threads, invalidate, own):
    here, there = make(lease=60), make(lease=60)
    loader = Slow("old")
    threads.start(partial(here.get_or_set, "k", loader, tags=("t",)))
    assert loader.begun.wait(PATIENCE)
    invalidate(here if own else there)
    loader.go_on.set()
    assert threads.join() == ["old"], "its caller gets it"
    assert "k" not in here._shard.tier.entries or here.get("k") == "new"
    for cache in (here, there):
        assert cache.get("k", max_staleness=0) in (None, "new")
    assert here.stats().fills_refused == 1
    assert there.get_or_set("k", lambda: "new") == "new", "and nobody waits for the lease that was lost"


def test_i14_an_older_invalidation_of_the_tag_voids_nothing(make):
    here, there = make(), make()
    there.invalidate_tags("t")
    there.clear()
    assert here.get_or_set("k", lambda: 1, tags=("t",)) == 1
    assert there.get("k") == 1
    there.invalidate_tags("t")
    assert there.get("k", max_staleness=0) is None


def test_who_asks_after_an_invalidation_is_not_given_what_was_read_before(cache, threads):
    old, new = Slow("old"), Slow("new")
    threads.start(partial(cache.get_or_set, "k", old))
    assert old.begun.wait(PATIENCE)
    cache.delete("k")
    later = Threads()
    later.start(partial(cache.get_or_set, "k", new))
    eventually(lambda: cache._runtime.instance.flights._flights["k"].waiters, "it waits")
    old.go_on.set()
    new.go_on.set()
    assert later.join() == ["new"]


def test_a_read_or_a_touch_changes_nothing_for_a_lease(make, threads):
    here, there = make(), make()
    loader = Slow()
    threads.start(partial(here.get_or_set, "k", loader))
    assert loader.begun.wait(PATIENCE)
    assert there.get("k") is None
    assert "k" not in there
    assert there.get_many(["k"]) == {}
    assert there.touch("k", 5) is False
    loader.go_on.set()
    assert threads.join() == ["loaded"]
    assert there.get("k") == "loaded"


def test_a_lease_is_no_value_for_a_delete(make, threads):
    here, there = make(), make()
    loader = Slow()
    threads.start(partial(here.get_or_set, "k", loader))
    assert loader.begun.wait(PATIENCE)
    assert there.delete("k") is False
    loader.go_on.set()


def test_a_lease_is_no_value_for_a_set_if_missing(make, threads):
    here, there = make(), make()
    loader = Slow()
    threads.start(partial(here.get_or_set, "k", loader))
    assert loader.begun.wait(PATIENCE)
    there.set("k", "first", if_version=MISSING)
    loader.go_on.set()
    assert threads.join() == ["loaded"]
    assert here.get("k", max_staleness=0) == "first"


# -- what a loader may say ---------------------------------------------------------------------------------------------


def test_a_loader_may_set_ttl_and_tags_by_what_it_loads(make):
    here, there = make(), make()
    seen = []

    def loader(context):
        seen.append((type(context), context.key, context.ttl, context.tags))
        context.ttl, context.tags = 7, ["red"]
        return 1

    assert here.get_or_set("k", loader, ttl=100, tags=("t",)) == 1
    assert seen == [(LoadContext, "k", 100, ("t",))]
    assert 6 < there.get_entry("k").expires_in <= 7
    there.invalidate_tags("red")
    assert there.get("k") is None


@pytest.mark.parametrize("change", [{"ttl": 0}, {"ttl": "7"}, {"tags": "red"}, {"tags": [""]}])
def test_a_loader_that_sets_what_cannot_be_is_told_and_leaves_nothing(cache, change):
    def loader(context):
        for name, value in change.items():
            setattr(context, name, value)

    with pytest.raises(ConfigError, match=next(iter(change))):
        cache.get_or_set("k", loader)
    assert cache.get_or_set("k", lambda: 1) == 1


def test_a_default_argument_makes_no_context(cache):
    assert cache.get_or_set("k", lambda number=3: number) == 3
    assert cache.get_or_set("l", partial(int, "4")) == 4
    assert cache.get_or_set("m", dict) == {}


@pytest.mark.parametrize(("value", "error"), [(object(), SerializationError), ("x" * 200, ValueTooLarge)])
def test_what_cannot_be_stored_is_an_error_and_leaves_nothing(make, value, error):
    cache = make(max_value_bytes=100)
    with pytest.raises(error):
        cache.get_or_set("k", lambda: value)
    assert cache.get_or_set("k", lambda: 1) == 1
    assert cache.stats().load_failures == 1


def test_no_such_thing_is_remembered_for_negative_ttl_only(make):
    here, there = make(), make()
    assert here.get_or_set("k", lambda: MISSING, default="none") == "none"
    assert there.get_or_set("k", lambda: MISSING, negative_ttl=100) is None
    assert here.get_or_set("k", never, default="none") == "none"
    assert here.get_or_set_entry("k", never).value is MISSING
    for cache in (here, there):
        assert cache.get("k", "absent") == "absent"
        assert cache.get_entry("k") is None
        assert cache.get_many(["k"]) == {}
        assert "k" not in cache
        assert cache.touch("k", 5) is False
        assert cache.delete("k") is False
    assert here.get_or_set("k", lambda: 1) == 1
    there.get_or_set("l", lambda: MISSING, negative_ttl=100, tags=("t",))
    there.invalidate_tags("t")
    assert here.get_or_set("l", lambda: 2) == 2
    there.get_or_set("m", lambda: MISSING, negative_ttl=100)
    there.set("m", 3, if_version=MISSING)
    assert here.get("m") == 3


def test_jitter_shortens_the_ttl(make):
    here, there = make(), make()
    for number in range(20):
        here.get_or_set(f"k{number}", lambda: 1, ttl=100, jitter=0.5)
    left = [there.get_entry(f"k{number}").expires_in for number in range(20)]
    assert all(49 < each <= 100 for each in left)
    assert max(left) - min(left) > 5


# -- stale rather than nothing -----------------------------------------------------------------------------------------


class Outage(Exception):
    """The database is away."""


def outage():
    raise Outage


@pytest.fixture
def outlived(make):
    """A cache that knows "old" as the last value of k, whose time is over."""
    cache = make()
    assert cache.get_or_set("k", lambda: "old", ttl=0.05, fail_safe=100) == "old"
    eventually(lambda: cache.get("k") is None, "its time is over")
    return cache


def test_fail_safe_serves_the_last_known_value_as_stale(outlived):
    found = outlived.get_or_set_entry("k", outage, fail_safe=100)
    assert isinstance(found, LoadResult)
    assert (found.value, found.stale, found.tier, found.version) == ("old", True, "stale", None)
    assert outlived.get_or_set("k", outage, fail_safe=100) == "old"
    assert outlived.stats().stale_served == 2
    with pytest.raises(Outage):
        outlived.get_or_set("k", outage)
    assert outlived.get("k") is None, "no other read shows it"


def test_fail_safe_makes_no_attempt_within_the_throttle(outlived):
    loader = Mock(side_effect=Outage)
    for _ in range(3):
        assert outlived.get_or_set("k", loader, fail_safe=100, throttle=60) == "old"
    assert loader.call_count == 1
    for _ in range(3):
        assert outlived.get_or_set("l", lambda: 1, fail_safe=100) == 1
    outlived._shard.kept.entries["k"].retry_at = 0.0
    assert outlived.get_or_set("k", lambda: "new", fail_safe=100) == "new"
    assert outlived.get_or_set_entry("k", never, fail_safe=100).stale is False


def test_without_throttle_each_call_is_an_attempt(outlived):
    loader = Mock(side_effect=Outage)
    for _ in range(3):
        assert outlived.get_or_set("k", loader, fail_safe=100, throttle=0) == "old"
    assert loader.call_count == 3


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    "invalidate",
    [lambda cache: cache.delete("k"), lambda cache: cache.clear(), lambda cache: cache.invalidate_tags("t")],
    ids=["delete", "clear", "tag"],
)
def test_what_is_known_to_be_outdated_is_not_served_as_stale(make, invalidate, own):
    here, there = make(), make()
    assert here.get_or_set("k", lambda: ["old"], fail_safe=100, tags=("t",)) == ["old"]
    invalidate(here if own else there)
    eventually(lambda: here._shard.last_known("k", 0.0) is None, "the message comes")
    with pytest.raises(Outage):
        here.get_or_set("k", outage, fail_safe=100)


def test_fail_safe_ends(make):
    cache = make()
    assert cache.get_or_set("k", lambda: "old", ttl=0.05, fail_safe=0.05) == "old"
    eventually(lambda: cache._shard.last_known("k", clock()) is None, "its time is over")
    with pytest.raises(Outage):
        cache.get_or_set("k", outage, fail_safe=0.05)


def test_a_local_hit_makes_a_value_known(make):
    cache = make()
    cache.set("k", {"a": 1}, ttl=0.3)
    assert cache.get_or_set("k", never, fail_safe=100) == {"a": 1}
    eventually(lambda: cache.get("k") is None, "its time is over")
    assert cache.get_or_set("k", outage, fail_safe=100) == {"a": 1}


def test_fail_safe_when_redis_is_away(outlived, monkeypatch):
    def away(*_args, **_options):
        raise CacheUnavailable("away")

    monkeypatch.setattr(io_of(outlived), "_exchange", away)
    assert outlived.get_or_set("k", never, fail_safe=100) == "old"
    with pytest.raises(CacheUnavailable):
        outlived.get_or_set("l", never, fail_safe=100)


def test_an_error_is_remembered_if_asked_and_hides_nothing(make):
    here, there = make(), make()
    loader = Mock(side_effect=Outage)
    for _ in range(3):
        with pytest.raises(Outage):
            here.get_or_set("k", loader, error_ttl=60)
    assert loader.call_count == 1
    with pytest.raises(Outage):
        here.get_or_set("k", loader)
    assert loader.call_count == 2, "who does not ask for it makes another attempt"
    assert there.get_or_set("k", lambda: 1, error_ttl=60) == 1
    assert here.get_or_set("k", never, error_ttl=60) == 1


def test_an_error_is_remembered_for_its_time(cache):
    for _ in range(2):
        with pytest.raises(Outage):
            cache.get_or_set("k", outage, error_ttl=0.001)
        eventually(lambda: cache._runtime.instance.flights.error_of("k", clock()) is None, "its time is over")
    assert cache.stats().load_failures == 2


# -- time-outs ---------------------------------------------------------------------------------------------------------


def test_a_hard_timeout_leaves_the_load_to_the_background(cache):
    loader = Slow()
    with pytest.raises(LoaderTimeout, match=r"hard_timeout=0\.02") as caught:
        cache.get_or_set("k", loader, hard_timeout=0.02)
    assert (caught.value.key, caught.value.seconds) == ("k", 0.02)
    loader.go_on.set()
    eventually(lambda: cache.get("k") == "loaded", "the load completes")
    assert loader.calls == 1


def test_a_load_in_time_is_returned_with_its_errors(cache):
    assert cache.get_or_set("k", lambda: 1, hard_timeout=PATIENCE) == 1
    with pytest.raises(Outage):
        cache.get_or_set("l", outage, hard_timeout=PATIENCE)


def test_a_soft_timeout_serves_the_last_known_value_meanwhile(outlived):
    loader = Slow("new")
    assert outlived.get_or_set("k", loader, fail_safe=100, soft_timeout=0.02) == "old"
    loader.go_on.set()
    eventually(lambda: outlived.get("k") == "new", "the load completes")
    assert loader.calls == 1


def test_a_soft_timeout_without_a_last_known_value_waits(cache, threads):
    loader = Slow()
    threads.start(partial(cache.get_or_set, "k", loader, fail_safe=100, soft_timeout=0.0))
    assert loader.begun.wait(PATIENCE)
    loader.go_on.set()
    assert threads.join() == ["loaded"]


def test_a_hard_timeout_with_fail_safe_serves_the_last_known_value(outlived):
    loader = Slow("new")
    assert outlived.get_or_set("k", loader, fail_safe=100, hard_timeout=0.02) == "old"
    loader.go_on.set()


# -- ahead of time -----------------------------------------------------------------------------------------------------


def test_refresh_ahead_loads_anew_in_the_background_once(make, threads):
    here, there = make(), make()
    here.set("k", "old", ttl=50)
    assert there.get("k") == "old"
    loader = Slow("new")
    for cache in (here, there):
        for _ in range(3):
            assert cache.get_or_set("k", loader, ttl=100, refresh_ahead=0.9) == "old"
    assert loader.begun.wait(PATIENCE)
    loader.go_on.set()
    for cache in (here, there):
        eventually(lambda cache=cache: cache.get("k") == "new", "the refresh completes")
        assert cache.get_or_set("k", never, ttl=100, refresh_ahead=0.5) == "new"
    assert loader.calls == 1
    assert here.get_entry("k").expires_in > 90


def test_a_value_from_redis_is_refreshed_as_well(make):
    here, there = make(), make()
    here.set("k", "old", ttl=50)
    assert there.get_or_set("k", lambda: "new", ttl=100, refresh_ahead=0.9) == "old"
    eventually(lambda: here.get("k") == "new", "the refresh completes")


@pytest.mark.parametrize("invalidate", [lambda cache: cache.delete("k"), lambda cache: cache.set("k", "newer")])
def test_i3_a_refresh_replaces_nothing_else_than_it_began_with(make, invalidate):
    here, there = make(), make()
    here.set("k", "old", ttl=50)
    loader = Slow("older than what is there")
    here.get_or_set("k", loader, ttl=100, refresh_ahead=0.9)
    assert loader.begun.wait(PATIENCE)
    invalidate(there)
    loader.go_on.set()
    eventually(lambda: here.stats().fills_refused == 1, "the fill is refused")
    for cache in (here, there):
        assert cache.get("k", max_staleness=0) in (None, "newer")


def test_a_refresh_that_fails_changes_nothing(make):
    cache = make()
    cache.set("k", "old", ttl=50)
    assert cache.get_or_set("k", outage, ttl=100, refresh_ahead=0.9) == "old"
    eventually(lambda: cache.stats().load_failures == 1, "the loader raises")
    assert cache.get_or_set("k", outage, ttl=100, refresh_ahead=0.9) == "old"


def test_nothing_is_refreshed_before_its_time(cache):
    cache.set("k", "old", ttl=100)
    assert cache.get_or_set("k", never, ttl=100, refresh_ahead=0.5) == "old"
    assert cache.stats().loads == 0


# -- many --------------------------------------------------------------------------------------------------------------


def test_get_or_set_many_calls_the_loader_once_with_what_is_missing(make):
    here, there = make(), make()
    here.set("a", 1)
    there.set("b", 2)
    loader = Mock(return_value={"c": 3, "d": None})
    assert here.get_or_set_many(["d", "a", "b", "c", "e", "a"], loader, negative_ttl=100) == {
        "d": None, "a": 1, "b": 2, "c": 3,
    }  # fmt: skip
    loader.assert_called_once_with(["d", "c", "e"])
    assert there.get_many(["a", "b", "c", "d", "e"]) == {"a": 1, "b": 2, "c": 3, "d": None}
    assert there.get_or_set_many(["c", "e"], never) == {"c": 3}
    assert here.get_or_set_many([], never) == {}
    assert here.stats().loads == 1


def test_get_or_set_many_asks_redis_three_times(cache, monkeypatch):
    cache.get_or_set_many(["x"], lambda keys: dict.fromkeys(keys, 0))
    execute = Mock(wraps=io_of(cache).execute)
    monkeypatch.setattr(io_of(cache), "execute", execute)
    cache.get_or_set_many(["a", "b", "c"], lambda keys: dict.fromkeys(keys, 1))
    assert execute.call_count == 3, "read, leases, fills"
    execute.reset_mock()
    cache.clear_local()
    assert cache.get_or_set_many(["a", "b", "c"], never) == {"a": 1, "b": 1, "c": 1}
    assert execute.call_count == 1


def test_get_or_set_many_waits_for_what_others_load(make, threads):
    here, there = make(), make()
    a, b = Slow("a"), Slow("b")
    threads.start(partial(here.get_or_set, "a", a))
    threads.start(partial(there.get_or_set, "b", b))
    assert a.begun.wait(PATIENCE)
    assert b.begun.wait(PATIENCE)
    loader = Mock(side_effect=lambda keys: dict.fromkeys(keys, "mine"))
    many = Threads()
    many.start(partial(here.get_or_set_many, ["a", "b", "c"], loader))
    eventually(lambda: there.get("c") == "mine", "what is its own is stored first")
    a.go_on.set()
    b.go_on.set()
    assert many.join() == [{"a": "a", "b": "b", "c": "mine"}]
    loader.assert_called_once_with(["c"])


def test_get_or_set_many_is_fenced_key_by_key(make):
    here, there = make(), make()

    def loader(keys):
        there.delete("a")
        return dict.fromkeys(keys, "old")

    assert here.get_or_set_many(["a", "b"], loader) == {"a": "old", "b": "old"}
    assert there.get_many(["a", "b"]) == {"b": "old"}
    assert here.get_many(["a", "b"]) == {"b": "old"}


@pytest.mark.parametrize("returned", [[1], {"other": 1}, None])
def test_get_or_set_many_needs_values_of_its_keys(cache, returned):
    with pytest.raises(ConfigError, match="loader"):
        cache.get_or_set_many(["a"], lambda _: returned)
    assert cache.get_or_set("a", lambda: 1) == 1, "no lease is left behind"


def test_an_error_of_the_loader_of_many_leaves_nothing(cache):
    def loader(_keys):
        raise Outage

    with pytest.raises(Outage):
        cache.get_or_set_many(["a", "b"], loader)
    assert cache.get_or_set_many(["a", "b"], lambda keys: dict.fromkeys(keys, 1)) == {"a": 1, "b": 1}


# -- loaders that ask the cache ----------------------------------------------------------------------------------------


def test_a_loader_that_asks_for_its_own_key_is_told_at_once(cache):
    with pytest.raises(LoaderDeadlock) as caught:
        cache.get_or_set("k", lambda: cache.get_or_set("k", never))
    assert caught.value.key == "k"
    with pytest.raises(LoaderDeadlock):
        cache.get_or_set("k", lambda: cache.get_or_set("k", never), hard_timeout=PATIENCE)
    with pytest.raises(LoaderDeadlock):
        cache.get_or_set_many(["j", "k"], lambda _: cache.get_or_set_many(["k", "l"], dict.fromkeys))
    assert cache.get_or_set("k", lambda: 1) == 1, "nothing is left behind"


def test_a_loader_may_ask_for_other_keys(cache):
    assert cache.get_or_set("k", lambda: cache.get_or_set("l", lambda: 1) + 1, hard_timeout=PATIENCE) == 2
    assert cache.get_or_set("k", never) == 2
    assert cache.get_or_set("l", never) == 1


def test_two_loaders_that_ask_for_each_others_keys_do_not_wait_for_ever(cache, threads):
    together = threading.Barrier(2)

    def ask(key, other):
        def loader():
            together.wait(PATIENCE)
            return cache.get_or_set(other, never)

        return cache.get_or_set(key, loader)

    threads.start(partial(ask, "k", "l"))
    threads.start(partial(ask, "l", "k"))
    assert threads.join() == []
    assert [type(error) for error in threads.errors] == [LoaderDeadlock] * 2, (
        "one is told, the other one gets its error"
    )


# -- what ends otherwise than usual ------------------------------------------------------------------------------------


@pytest.mark.parametrize("interruption", [SystemExit, KeyboardInterrupt])
def test_a_loader_that_is_interrupted_in_the_background_interrupts_its_caller(cache, interruption):
    loader = Mock(side_effect=interruption)
    with pytest.raises(interruption):
        cache.get_or_set("k", loader, hard_timeout=PATIENCE)
    assert loader.call_count == 1
    assert cache.get_or_set("k", lambda: 1, hard_timeout=PATIENCE) == 1


@pytest.mark.parametrize("front", ["sync"], indirect=True)
def test_without_more_threads_loads_go_on_in_the_foreground(cache, monkeypatch):
    def exhausted(_thread):
        raise RuntimeError("can't start new thread")

    cache.set("j", "old", ttl=50)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", exhausted)
        assert cache.get_or_set("k", lambda: 1, hard_timeout=PATIENCE) == 1
        assert cache.get_or_set("j", never, ttl=100, refresh_ahead=0.9, throttle=0) == "old"
    assert cache.get_or_set("l", lambda: 2, hard_timeout=PATIENCE) == 2
    assert cache._runtime._renewals._thread is not None, "later ones are renewed"
    assert cache.get_or_set("j", lambda: "new", ttl=100, refresh_ahead=0.9) == "old"
    eventually(lambda: cache.get("j") == "new", "it is refreshed when there are threads again")


def test_who_waits_elsewhere_is_told_when_the_cache_is_closed_and_loads_nothing(make, threads):
    here, there = make(lease=60), make(lease=60)
    loader = Slow()
    threads.start(partial(here.get_or_set, "k", loader))
    assert loader.begun.wait(PATIENCE)
    waiting = Threads()
    waiting.start(partial(there.get_or_set, "k", never))
    eventually(lambda: there._shard._waiters, "it waits")
    there.close()
    assert waiting.join() == []
    (error,) = waiting.errors
    assert isinstance(error, CacheUnavailable)
    assert "closed" in str(error)
    loader.go_on.set()


def test_leases_are_given_up_in_one_round_trip(cache, monkeypatch):
    def away(keys):
        monkeypatch.setattr(io_of(cache), "execute", execute)
        raise Outage

    execute = Mock(side_effect=CacheUnavailable("no answer in time"))
    with pytest.raises(Outage):
        cache.get_or_set_many([f"k{number}" for number in range(50)], away)
    assert execute.call_count == 1, "each attempt may take as long as the time-out"


def test_get_or_set_many_asks_for_1000_at_a_time(make, monkeypatch):
    cache = make(lease=60)
    execute = Mock(wraps=io_of(cache).execute)
    monkeypatch.setattr(io_of(cache), "execute", execute)
    keys = [f"k{number}" for number in range(1001)]
    assert cache.get_or_set_many(keys, lambda asked: dict.fromkeys(asked, 1)) == dict.fromkeys(keys, 1)
    sizes = [len(call.args[0]) for call in execute.call_args_list]
    assert sizes == [2, 1000, 1, 1000, 1], "reads, leases, fills"


def test_leases_do_not_outlive_a_failure_to_get_the_others(make, monkeypatch):
    here, there = make(lease=60), make(lease=60)
    execute = io_of(here).execute
    asked = []

    def fail_later(requests):
        asked.append(type(requests[0]).__name__)
        if asked[-2:] == ["LeaseRequest", "LeaseRequest"]:
            raise CacheUnavailable("no answer in time", maybe_applied=True)
        return execute(requests)

    with monkeypatch.context() as patched:
        patched.setattr(io_of(here), "execute", fail_later)
        with pytest.raises(CacheUnavailable):
            here.get_or_set_many([f"k{number}" for number in range(1001)], never)
    assert asked[-2:] == ["LeaseRequest", "ReleaseRequest"]
    assert there.get_or_set("k0", lambda: 1) == 1, "at once"


# -- reads that want more ----------------------------------------------------------------------------------------------


def test_max_staleness_of_a_read(make):
    here, there = make(), make()
    there.set("k", 1)
    assert here.get("k") == 1
    assert here.get("k", max_staleness=60) == 1
    assert here.stats().misses == 1
    assert here.get("k", max_staleness=0) == 1
    assert here.get_or_set("k", never, max_staleness=0) == 1
    assert here.get_or_set("k", never, skip_local=True) == 1
    assert here.stats().misses == 4
    assert here.get_or_set("k", never) == 1
    assert here.stats().misses == 4


def test_min_version_reads_what_was_written_elsewhere(make):
    here, there = make(), make()
    there.set("k", 1)
    assert here.get("k") == 1
    with messages_wait(here):
        threads = Threads()
        threads.start(lambda: there.set("k", 2))
        (version,) = threads.join()
        assert here.get("k") == 1
        assert here.get("k", min_version=version) == 2
    assert here.get("k") == 2
    assert here.get_or_set("k", never, min_version=version) == 2


def test_the_version_of_a_local_hit_is_of_the_history_that_it_was_in(cache, monkeypatch):
    version = cache.set("k", 1)
    here = cache._here

    def then_the_history_is_lost(wish):
        found = here(wish)
        monkeypatch.setattr(cache, "_here", here)
        with cache._shard._lock:
            cache._shard._forget("a test")
        return found

    monkeypatch.setattr(cache, "_here", then_the_history_is_lost)
    assert cache.get_or_set_entry("k", never).version == version


def test_min_version_is_a_bound_for_stale_values_as_well(make):
    here, there = make(), make()
    assert here.get_or_set("k", lambda: "old", ttl=0.05, fail_safe=100) == "old"
    eventually(lambda: here.get("k") is None, "its time is over")
    with messages_wait(here):
        threads = Threads()
        threads.start(lambda: there.set("k", "new", ttl=0.001))
        (version,) = threads.join()
        eventually(lambda: there.get("k", max_staleness=0) is None, "its time is over, too")
        with pytest.raises(Outage):
            here.get_or_set("k", outage, fail_safe=100, min_version=version)
        assert here.get_or_set("k", outage, fail_safe=100) == "old"
        with pytest.raises(Outage):
            here.get_or_set("k", outage, fail_safe=100, min_version=version)


def test_min_version_of_what_redis_has_lost_counts_as_absent(cache):
    version = cache.set("k", 1)
    later = Version(version.epoch, version.seq + 5)
    assert cache.get("k", "absent", min_version=later) == "absent"
    assert cache.get_or_set("k", lambda: 2, min_version=later) == 2
    assert cache.get("k") == 1


def test_min_version_of_a_history_that_was_lost_asks_nothing(cache):
    cache.set("k", 1)
    assert cache.get("k", min_version=Version(b"another history.", 999)) == 1
    assert cache.get_or_set("k", never, min_version=Version(b"another history.", 999)) == 1


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("ttl", 0), ("ttl", "5"), ("tags", "red"), ("tags", [""]), ("tags", 5), ("jitter", 0), ("jitter", 1),
        ("jitter", "0.1"), ("jitter", True), ("negative_ttl", 0), ("negative_ttl", -1), ("fail_safe", 0),
        ("throttle", -1), ("throttle", None), ("error_ttl", 0), ("soft_timeout", -1), ("soft_timeout", 1),
        ("hard_timeout", -1), ("hard_timeout", "1"),
        ("refresh_ahead", 0), ("refresh_ahead", 1.0), ("max_staleness", -1), ("max_staleness", "1"),
        ("min_version", 7),
    ],
)  # fmt: skip
def test_a_bad_option_is_refused_by_name_before_anything_is_sent(cache, option, value):
    with pytest.raises(ConfigError) as caught:
        cache.get_or_set("k", never, **{option: value})
    assert caught.value.option == option
    assert cache.stats().misses == 0


def test_an_unknown_option_is_refused(cache):
    cache.set("k", 1)
    for call in (cache.get_or_set, cache.get_or_set_entry):
        with pytest.raises(TypeError, match="'tll' is no option of a load; there are ttl, "):
            call("k", never, tll=5)


@pytest.mark.parametrize(("option", "value"), [("max_staleness", -1), ("min_version", 7)])
def test_a_bad_option_is_refused_as_well_if_the_local_tier_is_not_read(cache, option, value):
    with pytest.raises(ConfigError) as caught:
        cache.get_or_set("k", never, skip_local=True, **{option: value})
    assert caught.value.option == option


def test_options_that_need_each_other(make):
    cache = make()
    with pytest.raises(ConfigError, match=r"soft_timeout: 2 s must not exceed hard_timeout=1 s"):
        cache.get_or_set("k", never, fail_safe=1, soft_timeout=2, hard_timeout=1)
    with pytest.raises(ConfigError, match=r"refresh_ahead: .*give a ttl"):
        cache.get_or_set("k", never, ttl=None, refresh_ahead=0.5)
    with pytest.raises(ConfigError, match=r"fail_safe: .*local_enabled"):
        make(local_enabled=False).get_or_set("k", never, fail_safe=5)


@pytest.mark.parametrize("loader", [None, 5, "text"])
def test_a_loader_is_callable(cache, loader):
    with pytest.raises(ConfigError, match=r"loader: must be callable"):
        cache.get_or_set("k", loader)
    with pytest.raises(ConfigError, match=r"loader: must be callable"):
        cache.get_or_set_many(["k"], loader)


def test_a_loader_takes_one_argument_at_most(cache):
    with pytest.raises(ConfigError, match=r"loader: .*functools\.partial"):
        cache.get_or_set("k", lambda _a, _b: None)


@pytest.mark.parametrize("key", ["", None, 5, "x" * 1025, []])
def test_a_bad_key_is_refused(cache, key):
    with pytest.raises(InvalidKey):
        cache.get_or_set(key, never)


def test_a_closed_cache_loads_nothing(make):
    cache = make()
    cache.close()
    with pytest.raises(CacheUnavailable, match="closed"):
        cache.get_or_set("k", never)
