"""``assert_coherent`` passes what is coherent, waits for what becomes so, and names what is not."""

import threading
from functools import partial
from itertools import count

import pytest

from coherent_cache import CacheUnavailable, ConfigError, InvalidKey, Version
from coherent_cache.serializers import make_codec
from coherent_cache.testing import assert_coherent, coherence
from coherent_cache.testing.coherence import Held, Look

CODEC = make_codec("msgpack", stacklevel=2)
ONE, TWO = b"1" * 16, b"2" * 16


@pytest.fixture
def caches(coherent_cache_factory):
    return [coherent_cache_factory() for _ in range(2)]


def entry_of(cache, key):
    return cache._runtime.instance.shards[0].tier.entries[key]


def held(seq, value="x", epoch=ONE):
    return Held(Version(epoch, seq), CODEC.dumps(value))


class Scripted:
    """An instance that shows what it was told to, and a Redis that says what it was told to; the last one for ever."""

    instance_id, namespace = "scripted", "n"

    def __init__(self, looks, truths, *, bound=100.0, state="coherent"):
        self.looks, self.truths, self.bound, self.states = list(looks), list(truths), bound, [state]
        self.looks.insert(0, self.looks[0])  # the first look finds out which keys there are

    def look(self, keys):
        shown = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return Look(state, self.bound, {} if shown is None else {"a": shown})

    def reader(self):
        return self

    def __enter__(self):
        return self.read, CODEC

    def __exit__(self, *_):
        pass

    def read(self, key):
        truth = self.truths.pop(0) if len(self.truths) > 1 else self.truths[0]
        if isinstance(truth, Exception):
            raise truth
        return truth


def fault(*instances, **options):
    with pytest.raises(AssertionError) as caught:
        assert_coherent(instances, **options)
    return str(caught.value)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(coherence, "sleep", lambda _: None)


class TestRealCaches:
    def test_what_is_written_by_one_is_forgotten_by_the_other(self, caches):
        one, other = caches
        one.set_many({"a": 1, "b": [2]})
        assert other.get_many(["a", "b"]) == {"a": 1, "b": [2]}
        one.set("a", 3)
        one.delete("b")
        assert_coherent(caches, ["a", "b", "never there"])
        assert one.get_entry("a").tier == "local"

    def test_looking_changes_and_counts_nothing(self, caches):
        caches[0].set("a", 1)
        assert_coherent(caches, ["a"])
        before = [cache.stats() for cache in caches]
        assert_coherent(caches, ["a"])
        after = [cache.stats() for cache in caches]
        assert [(s.size, s.hits, s.misses) for s in before] == [(s.size, s.hits, s.misses) for s in after]
        assert [stats.size for stats in after] == [1, 0]

    def test_a_single_cache_and_all_its_keys(self, caches):
        caches[0].set("a", 1)
        assert_coherent(caches[0])

    def test_several_shards(self, coherent_cache_factory):
        caches = [coherent_cache_factory(shards=4) for _ in range(2)]
        caches[0].set_many({f"k{i}": i for i in range(20)})
        assert caches[1].warm([f"k{i}" for i in range(20)]) == 20
        assert_coherent(caches)
        entry_of_shard = caches[1]._runtime.instance.shard_of(b"k7").tier.entries["k7"]
        entry_of_shard.seq += 1  # a lower one would go when the message comes
        assert "key 'k7'" in fault(*caches, timeout=0)

    def test_another_version_is_named(self, caches):
        one, other = caches
        version = one.set("a", 1)
        other.get("a")
        entry_of(other, "a").seq = version.seq + 1
        epoch = version.epoch.hex()[:8]
        text = f"key 'a': instance {other.instance_id} (coherent) holds {epoch}:2, Redis has {epoch}:1"
        assert text in fault(*caches, keys=["a"], timeout=0)

    def test_what_redis_has_not_is_named(self, caches):
        one, other = caches
        one.set("a", 1)
        other.get("a")
        kept = entry_of(other, "a")
        one.delete("a")
        assert_coherent(caches, ["a"])
        other._runtime.instance.shards[0].tier.entries["a"] = kept
        assert "Redis has nothing" in fault(*caches, keys=["a"], timeout=0)

    @pytest.mark.coherent_cache(copy_values=False)
    def test_a_shared_value_that_was_changed_in_place_is_found(self, caches):
        one, _ = caches
        one.set("a", [1])
        one.get("a").append(2)
        assert "another value under that version" in fault(*caches, keys=["a"], timeout=0)

    def test_an_expired_entry_counts_as_none(self, caches):
        one, other = caches
        one.set("a", 1)
        other.get("a")
        entry = entry_of(other, "a")
        entry.deadline = 0.0
        other._runtime.instance.shards[0].tier.entries["a"] = entry  # should a sweep have been faster
        assert coherence.look(other, None).held == {}

    def test_a_cache_without_a_local_tier_holds_nothing(self, coherent_cache_factory):
        cache = coherent_cache_factory(local_enabled=False)
        cache.set("a", 1)
        assert_coherent(cache, ["a"])

    def test_an_instance_that_was_never_connected(self, coherent_cache_factory):
        cache = coherent_cache_factory(ready=False)
        text = f"instance {cache.instance_id}: it is connecting, and was not seen coherent"
        assert text in fault(cache, keys=["a"], timeout=0)

    @pytest.mark.coherent_cache(on_disconnect="serve_stale", stale_limit=3600.0, heartbeat=0.005, max_staleness=0.05)
    def test_what_is_served_past_the_bound_is_looked_at(self, caches):
        cache = caches[0]
        cache.set("a", 1)
        assert set(coherence.look(cache, None).held) == {"a"}
        cache._runtime._subscriber.stop(5)
        shard = cache._runtime.instance.shards[0]
        shard.tier.horizon = shard.lapses_at = shard.tier.valid_until = coherence.clock() - 60.0
        assert cache.state == "disconnected"
        found = coherence.look(cache, ["a", "b"])
        assert (found.state, found.bound, set(found.held)) == ("disconnected", 3600.0, {"a"})
        shard.tier.horizon = shard.tier.valid_until = coherence.clock() - 7200.0
        assert coherence.look(cache, ["a"]).held == {}

    def test_what_no_read_would_be_served_is_not_held(self, caches):
        cache = caches[0]
        cache.set("a", 1)
        cache._runtime._subscriber.stop(5)
        shard = cache._runtime.instance.shards[0]
        shard.tier.valid_until = coherence.clock() - 60.0
        assert coherence.look(cache, None).held == {}

    def test_a_closed_cache_is_refused(self, caches):
        caches[1].close()
        with pytest.raises(CacheUnavailable, match="is closed"):
            assert_coherent(caches, ["a"])


class TestJudgement:
    def test_equal(self):
        assert_coherent(Scripted([held(1)], [held(1)]))

    def test_equal_values_in_other_bytes(self):
        written = Held(Version(ONE, 1), b"\xd1\x00\x05")  # 5, at length
        assert_coherent(Scripted([written], [held(1, 5)]))

    def test_it_waits_for_what_is_on_its_way(self):
        assert_coherent(Scripted([held(1), held(1), None], [held(2)]))
        assert_coherent(Scripted([held(1), held(1), held(2)], [held(2)]))

    def test_while_others_write_being_up_to_date_once_is_enough(self):
        assert_coherent(Scripted([held(1), held(2), held(4)], [held(2), held(3), held(4), held(5)]))

    def test_backwards_within_one_assertion(self):
        text = fault(Scripted([held(5), held(4)], [held(6)]))
        assert "holds 31313131:4, Redis has 31313131:6, after having served 31313131:5: it went backwards" in text

    def test_backwards_from_one_assertion_to_the_next(self):
        instance = Scripted([held(5)], [held(5)])
        assert_coherent(instance)
        instance.looks = [held(4)]
        assert "it went backwards" in fault(instance)

    def test_backwards_to_what_redis_has_lost_is_none(self):
        instance = Scripted([held(5)], [held(5)])
        assert_coherent(instance)
        instance.looks, instance.truths = [held(4)], [held(4)]
        assert_coherent(instance)

    def test_another_epoch_is_not_backwards(self):
        instance = Scripted([held(5)], [held(5)])
        assert_coherent(instance)
        instance.looks, instance.truths = [held(1, epoch=TWO)], [held(1, epoch=TWO)]
        assert_coherent(instance)

    @pytest.mark.parametrize("truth", [held(2), None, held(1, epoch=TWO)], ids=["newer", "deleted", "lost"])
    def test_outdated_beyond_the_bound_fails_at_once(self, truth):
        """With an hour to wait: the test would not end otherwise."""
        assert "; the bound is 0 s" in fault(Scripted([held(1)], [truth], bound=0.0), timeout=3600)

    def test_outdated_since_its_own_version_was(self, monkeypatch):
        """Each write that it has caught up with begins a new time."""
        monkeypatch.setattr(coherence, "clock", partial(next, count()))  # a second goes by with each look at it
        behind = [held(number) for number in range(1, 50)]
        truths = [held(number + 1) for number in range(1, 60)]
        assert "the bound" not in fault(Scripted(behind, truths, bound=10.0), timeout=60)
        assert "the bound is 10 s" in fault(Scripted(behind[:1], truths, bound=10.0), timeout=60)

    def test_newer_than_redis_is_no_staleness_and_no_agreement(self):
        text = fault(Scripted([held(7)], [held(5)], bound=0.0), timeout=0)
        assert text.endswith("holds 31313131:7, Redis has 31313131:5")

    def test_what_is_held_by_an_instance_that_is_not_coherent_proves_nothing(self):
        text = fault(Scripted([None], [held(5)], state="disconnected"), keys=["a"], timeout=0)
        assert text.splitlines()[1:] == ["  instance scripted: it is disconnected, and was not seen coherent"]

    def test_what_it_holds_counts_once_it_is_coherent(self):
        """While it was not, it served nothing, and so nothing that is wrong."""
        instance = Scripted([None, None, held(4)], [held(5)])
        instance.states = ["disconnected"] * 3 + ["coherent"]
        text = fault(instance, keys=["a"], timeout=0.05)
        assert text.endswith("(coherent) holds 31313131:4, Redis has 31313131:5")

    def test_redis_may_be_away_for_a_while(self):
        assert_coherent(Scripted([held(1)], [CacheUnavailable("away"), CacheUnavailable("away"), held(1)]))

    def test_redis_stays_away(self):
        with pytest.raises(CacheUnavailable):
            assert_coherent(Scripted([held(1)], [CacheUnavailable("away")]), timeout=0)

    def test_every_fault_is_listed(self):
        text = fault(Scripted([held(1)], [held(2)]), Scripted([held(1)], [held(2)]), timeout=0)
        assert len(text.splitlines()) == 3


class TestArguments:
    def test_no_instance(self):
        with pytest.raises(ConfigError, match="instances: there is none"):
            assert_coherent([], ["a"])

    @pytest.mark.parametrize("given", [3, None, "cache", [threading.Lock()]])
    def test_no_such_thing_as_an_instance(self, given):
        with pytest.raises(ConfigError, match="instances: must be caches"):
            assert_coherent(given, ["a"])

    def test_several_namespaces(self, coherent_cache_factory):
        caches = [coherent_cache_factory(namespace=name) for name in ("one", "two")]
        with pytest.raises(ConfigError, match="of one namespace, not of one, two"):
            assert_coherent(caches, ["a"])

    @pytest.mark.parametrize("keys", ["a", b"a", []])
    def test_no_keys(self, caches, keys):
        with pytest.raises(ConfigError, match="keys: "):
            assert_coherent(caches, keys)

    def test_no_key(self, caches):
        with pytest.raises(InvalidKey):
            assert_coherent(caches, ["a", ""])
