"""The local tier: limits, victims, tags, expiration, counts, and what a reader without a lock may see."""

import gc
import random
import sys
import textwrap
import threading
import tracemalloc
from collections import Counter, OrderedDict
from math import inf
from types import SimpleNamespace

import pytest

from coherent_cache.core import local_tier
from coherent_cache.core.entries import ENTRY_OVERHEAD_BYTES, CountedEntry, RemovalCause, TierCounts, make_entry
from coherent_cache.core.eviction import POLICIES, LruPolicy
from coherent_cache.core.local_tier import LocalTier

ALL_POLICIES = ["lru", "lfu", "fifo", "random"]
GIL = getattr(sys, "_is_gil_enabled", lambda: True)()


def reader_of_the_docstring():
    """The hit path, exactly as the module's docstring tells callers to inline it."""
    text = local_tier.__doc__.split("::\n\n", 1)[1].split("\n\nWhat makes", 1)[0]
    names = {}
    exec("def read(self, key, clock, decode):\n" + textwrap.indent(textwrap.dedent(text), "    "), names)
    return names["read"]


READ = reader_of_the_docstring()


def hit(tier, key, now=0.0):
    return READ(SimpleNamespace(_tier=tier), key, lambda: now, lambda payload: f"decoded {payload}")


def entry(value="v", *, seq=1, size=1, **options):
    return make_entry(value, seq=seq, size=size, **options)


class Checked:
    """A tier whose invariants, and the balance of its counts, are checked after every call."""

    def __init__(self, tier):
        self.tier = tier

    def __getattr__(self, name):
        attribute = getattr(self.tier, name)
        if not callable(attribute):
            return attribute

        def call(*args, **kwargs):
            result = attribute(*args, **kwargs)
            current = result if isinstance(result, LocalTier) else self.tier
            current.check_invariants()
            assert current.counts.inserts == len(current) + sum(current.counts.removed.values())
            return Checked(result) if isinstance(result, LocalTier) else result

        return call

    def __len__(self):
        return len(self.tier)

    def put(self, key, *, now=0.0, **options):
        return self.insert(key, entry(key, **options), now)

    def hit(self, key, now=0.0):
        return hit(self.tier, key, now)

    def removed(self):
        return {cause.value: count for cause, count in self.counts.removed.items() if count}


def new_tier(policy="lru", max_entries=100, max_bytes=None, seed=1):
    tier = LocalTier(max_entries=max_entries, max_bytes=max_bytes, policy=policy, rng=random.Random(seed))
    tier.valid_until = inf
    return Checked(tier)


@pytest.fixture(params=ALL_POLICIES)
def policy(request):
    return request.param


# --- entries and sizes ------------------------------------------------------------------------------------------------


def test_a_shared_entry_has_its_deadline_and_no_coded_one():
    held = entry(expires_at=5.0)
    assert (held.deadline, held.coded_deadline, held.expires_at) == (5.0, -inf, 5.0)


def test_a_coded_entry_has_a_coded_deadline_and_no_other():
    held = entry(expires_at=5.0, shared=False)
    assert (held.deadline, held.coded_deadline, held.expires_at) == (-inf, 5.0, 5.0)


def test_an_entry_never_expires_by_default():
    held = make_entry("v", seq=7, size=9)
    assert (held.deadline, held.tags, held.seq, held.size) == (inf, (), 7, 9)
    assert not held.is_expired(sys.float_info.max)


@pytest.mark.parametrize("shared", [True, False])
def test_an_entry_lives_strictly_before_its_expiry(shared):
    held = entry(expires_at=5.0, shared=shared)
    assert not held.is_expired(4.999)
    assert held.is_expired(5.0)
    assert held.is_expired(5.001)


def test_entries_and_tiers_have_no_dict():
    plain = entry()
    plain.birth = 1
    for held in (plain, TierCounts(), new_tier().tier, CountedEntry(plain, stamp=1, frequency=1)):
        assert not hasattr(held, "__dict__")


def test_the_overhead_is_about_what_an_entry_really_costs():
    count = 4_000
    tier = LocalTier(max_entries=count, rng=random.Random(1))
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(count + 400):
            value = b"x" * 96 + b"%04d" % number
            tier.insert(
                f"key:{number:016d}", make_entry(value, seq=9999 + number, size=620, expires_at=1e6 + number), 0.0
            )
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 0.75 * ENTRY_OVERHEAD_BYTES < used / count - 120 < 1.15 * ENTRY_OVERHEAD_BYTES


# --- construction -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_entries": 0}, "max_entries must be 1 or more, not 0"),
        ({"max_entries": 1, "max_bytes": 0}, "max_bytes must be None or 1 or more, not 0"),
        ({"max_entries": 1, "policy": "mru"}, "policy must be one of lru, lfu, fifo, random, not 'mru'"),
    ],
)
def test_unusable_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LocalTier(rng=random.Random(1), **options)


def test_a_new_tier_is_empty_and_serves_nothing():
    tier = LocalTier(max_entries=1, max_bytes=1, rng=random.Random(1))
    tier.check_invariants()
    assert (tier.valid_until, tier.horizon, tier.ticks, tier.bytes, len(tier)) == (-inf, -inf, 0, 0, 0)
    tier.insert("k", entry("v"), 0.0)
    assert hit(tier, "k") is None


# --- the hit path as documented ---------------------------------------------------------------------------------------


def test_a_hit_returns_the_shared_value_and_counts(policy):
    tier = new_tier(policy)
    tier.put("k", expires_at=5.0)
    tier.put("other")
    assert tier.hit("k", now=4.9) == "k"
    assert (tier.hits, tier.ticks, tier.entries["k"].used) == (1, 3, 3)


def test_a_hit_on_a_coded_entry_decodes_and_counts(policy):
    tier = new_tier(policy)
    tier.put("k", expires_at=5.0, shared=False)
    assert tier.hit("k", now=4.9) == "decoded k"
    assert (tier.hits, tier.entries["k"].used) == (1, 2)


@pytest.mark.parametrize("shared", [True, False])
def test_an_expired_or_absent_entry_is_a_miss_and_counts_no_hit(shared):
    tier = new_tier()
    tier.put("k", expires_at=5.0, shared=shared)
    assert tier.hit("k", now=5.0) is None
    assert tier.hit("absent") is None
    assert tier.hits == 0


def test_p4_nothing_is_served_past_valid_until():
    tier = new_tier()
    tier.put("k")
    tier.tier.valid_until = 3.0
    assert tier.hit("k", now=3.0) == "k"
    assert tier.hit("k", now=3.1) is None


def test_p4_valid_until_is_read_before_the_clock_and_the_clock_before_the_entry():
    order = []

    class Watched:
        ticks = 0

        @property
        def valid_until(self):
            order.append("horizon")
            return inf

        @property
        def entries(self):
            order.append("look-up")
            return {"k": entry()}

    READ(SimpleNamespace(_tier=Watched()), "k", lambda: order.append("clock") or 0.0, None)
    assert order == ["horizon", "clock", "look-up"]


# --- insert -----------------------------------------------------------------------------------------------------------


def test_all_policies_but_lfu_store_the_object_given(policy):
    tier = new_tier(policy)
    held = entry(expires_at=5.0, tags=("t",), size=3, seq=4)
    assert tier.insert("k", held, 0.0) is True
    assert (tier.entries["k"] is held) == (policy != "lfu")


@pytest.mark.parametrize("shared", [True, False])
def test_lfu_stores_an_equal_entry_that_counts(shared):
    tier = new_tier("lfu")
    held = entry("v", seq=4, size=3, expires_at=5.0, shared=shared, tags=("t",))
    tier.insert("k", held, 0.0)
    stored = tier.entries["k"]
    assert isinstance(stored, CountedEntry)
    for name in ("value", "seq", "size", "deadline", "coded_deadline", "tags", "birth"):
        assert getattr(stored, name) == getattr(held, name)
    assert (stored.frequency, stored.used) == (1, 1)


def test_a_replacement_takes_the_place_and_the_accounts(policy):
    tier = new_tier(policy)
    tier.put("k", size=10, tags=("a", "b"))
    tier.insert("k", entry("new", seq=2, size=4, tags=("b", "c")), 0.0)
    assert tier.hit("k") == "new"
    assert (len(tier), tier.bytes, tier.removed(), tier.counts.inserts) == (1, 4, {"replaced": 1}, 2)
    assert tier.remove_tagged("a", 9) == 0
    assert tier.remove_tagged("c", 9) == 1


def test_a_replacement_in_a_full_tier_evicts_nobody(policy):
    tier = new_tier(policy, max_entries=3, max_bytes=30)
    for key in "abc":
        tier.put(key, size=10)
    tier.put("a", size=10)
    assert (sorted(tier.entries), tier.removed()) == (["a", "b", "c"], {"replaced": 1})


class Watch(dict):
    """Entries that record the most ever held and every removal."""

    def __init__(self):
        super().__init__()
        self.most = 0
        self.gone = []

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        self.most = max(self.most, len(self))

    def pop(self, key, default=None):
        self.gone.append(key)
        return super().pop(key, default)


def watched_tier(policy, **limits):
    tier = new_tier(policy, **limits)
    tier.tier.entries = tier.tier._chooser._entries = Watch()
    return tier


def test_a_reader_never_misses_a_key_that_is_replaced_in_place(policy):
    tier = watched_tier(policy, max_bytes=3)
    tier.put("k", size=2)
    tier.put("k", size=3)
    assert tier.entries.gone == []


def test_victims_go_before_the_new_entry_comes(policy):
    tier = watched_tier(policy, max_entries=3)
    for number in range(10):
        tier.put(f"k{number}")
    assert tier.entries.most == 3


def test_a_replacement_that_grows_past_max_bytes_evicts_others_not_itself(policy):
    tier = new_tier(policy, max_bytes=10)
    tier.put("a", size=4)
    tier.put("b", size=4)
    assert tier.put("a", size=8)
    assert (sorted(tier.entries), tier.removed(), tier.bytes) == (["a"], {"replaced": 1, "size": 1}, 8)


def test_an_entry_larger_than_max_bytes_is_refused_and_the_older_one_goes(policy):
    tier = new_tier(policy, max_bytes=10)
    tier.put("a", size=4)
    tier.put("b", size=4)
    ticks = tier.ticks
    assert tier.put("a", size=11) is False
    assert (sorted(tier.entries), tier.removed(), tier.counts.rejected_too_large) == (["b"], {"replaced": 1}, 1)
    assert (tier.counts.inserts, tier.ticks) == (2, ticks)


def test_an_absent_entry_larger_than_max_bytes_is_refused_and_nobody_goes():
    tier = new_tier(max_bytes=10)
    tier.put("a", size=10)
    assert tier.put("b", size=11) is False
    assert (sorted(tier.entries), tier.removed(), tier.counts.rejected_too_large) == (["a"], {}, 1)


def test_max_bytes_itself_fits(policy):
    tier = new_tier(policy, max_bytes=10)
    assert tier.put("a", size=10)
    assert tier.bytes == 10


def test_a_large_entry_evicts_as_many_as_it_needs():
    tier = new_tier("lru", max_bytes=10)
    for key in "abcde":
        tier.put(key, size=2)
    tier.put("f", size=5)
    assert (sorted(tier.entries), tier.removed(), tier.bytes) == (["d", "e", "f"], {"size": 3}, 9)


def test_a_victim_that_has_expired_counts_as_expired():
    tier = new_tier("fifo", max_entries=2)
    tier.put("a", expires_at=5.0)
    tier.put("b", expires_at=5.1, shared=False)
    tier.put("c", now=5.0)
    assert tier.removed() == {"expired": 1}
    tier.put("d", now=5.0)
    assert tier.removed() == {"expired": 1, "size": 1}


def test_no_limit_of_bytes_by_default():
    tier = new_tier(max_entries=2)
    assert tier.put("a", size=10**15)


def test_each_insertion_has_a_birth_and_a_tick_of_its_own(policy):
    tier = new_tier(policy)
    for number in range(5):
        tier.put(f"k{number % 3}")
        assert (tier.entries[f"k{number % 3}"].birth, tier.births, tier.ticks) == (number + 1, number + 1, number + 1)
    assert tier.hits == 0


# --- victims ----------------------------------------------------------------------------------------------------------


def victims(tier, count):
    """Evict ``count`` entries by inserting newcomers that never hit, and return the keys in order."""
    order = []
    for number in range(count):
        before = set(tier.entries)
        tier.put(f"new{number}")
        order.extend(before - set(tier.entries))
    return order


def test_lru_evicts_by_the_last_use():
    tier = new_tier("lru", max_entries=4)
    for key in "abcd":
        tier.put(key)
    tier.hit("a")
    tier.hit("c")
    tier.hit("a")
    tier.put("b")
    assert victims(tier, 4) == ["d", "c", "a", "b"]


def test_lru_notices_hits_after_the_first_eviction():
    tier = new_tier("lru", max_entries=3)
    for key in "abcd":
        tier.put(key)
    tier.hit("b")
    assert victims(tier, 2) == ["c", "d"]


def test_lfu_evicts_the_fewest_uses_and_of_equals_the_least_recent():
    tier = new_tier("lfu", max_entries=4)
    for key in "abcd":
        tier.put(key)
    for key in "aabbdc":
        tier.hit(key)
    # uses: a 3, b 3, c 2, d 2; newcomers have 1 and go before any of them
    assert victims(tier, 3) == ["d", "new0", "new1"]
    for _ in range(9):
        tier.hit("new2")
    tier.put("e")
    assert "c" not in tier.entries
    tier.hit("e")
    tier.hit("e")
    tier.hit("e")
    assert victims(tier, 1) == ["a"]


def test_lfu_keeps_the_frequency_of_a_key_that_is_replaced_and_adds_one():
    tier = new_tier("lfu", max_entries=2, max_bytes=10)
    tier.put("a", size=5)
    tier.hit("a")
    tier.put("a", size=6)
    assert tier.entries["a"].frequency == 3
    tier.put("b", size=4)
    tier.put("a", size=7)  # b must go, and a is replaced by way of a removal
    assert (sorted(tier.entries), tier.entries["a"].frequency) == (["a"], 4)


def test_lfu_forgets_the_frequency_of_a_key_that_was_removed():
    tier = new_tier("lfu")
    tier.put("a")
    tier.hit("a")
    tier.remove("a", RemovalCause.INVALIDATED)
    tier.put("a")
    assert tier.entries["a"].frequency == 1


def test_fifo_evicts_in_order_of_insertion_whatever_is_hit():
    tier = new_tier("fifo", max_entries=3)
    for key in "abc":
        tier.put(key)
    tier.hit("a")
    assert victims(tier, 3) == ["a", "b", "c"]


@pytest.mark.parametrize("full_before", [False, True])
def test_fifo_moves_a_replaced_or_reinserted_key_to_the_back(full_before):
    tier = new_tier("fifo", max_entries=4)
    if full_before:  # the candidates exist already when the keys move
        for number in range(5):
            tier.put(f"old{number}")
        for number in range(1, 5):
            tier.remove(f"old{number}", RemovalCause.INVALIDATED)
    for key in "abcd":
        tier.put(key)
    tier.put("a")
    tier.remove("b", RemovalCause.INVALIDATED)
    tier.put("b")
    assert victims(tier, 4) == ["c", "d", "a", "b"]


def model_victim(policy, model):
    """``model``: key -> [uses, stamp of last use, stamp of insertion]."""
    rank = {"lru": lambda record: record[1], "lfu": lambda record: record[:2], "fifo": lambda record: record[2]}[policy]
    return min(model, key=lambda key: rank(model[key]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("policy", ["lru", "lfu", "fifo"])
def test_the_victims_are_those_of_a_naive_model(policy, seed):
    rng = random.Random(seed)
    tier = new_tier(policy, max_entries=20)
    model = {}
    for step in range(4_000):
        key = f"k{min(int(rng.expovariate(0.06)), 59)}"
        action = rng.random()
        if action < 0.55:
            assert tier.hit(key) == (key if key in model else None)
            if key in model:
                model[key][:2] = [model[key][0] + 1, step]
        elif action < 0.97:
            if key not in model and len(model) == 20:
                del model[model_victim(policy, model)]
            model[key] = [model[key][0] + 1 if key in model else 1, step, step]
            tier.put(key)
        elif action < 0.999:
            assert tier.remove(key, RemovalCause.INVALIDATED) == (model.pop(key, None) is not None)
        else:
            tier.remove_all(RemovalCause.CLEARED)
            model.clear()
        assert tier.entries.keys() == model.keys()


def test_lru_equals_an_ordered_dict_over_a_long_sequence():
    rng = random.Random(42)
    tier = LocalTier(max_entries=64, rng=rng)
    tier.valid_until = inf
    model = OrderedDict()
    for _ in range(60_000):
        key = f"k{int(rng.paretovariate(0.5)) % 500}"
        if hit(tier, key) is None:
            tier.insert(key, entry(key), 0.0)
            model[key] = True
            if len(model) > 64:
                model.popitem(last=False)
        else:
            model.move_to_end(key)
        assert tier.entries.keys() == model.keys()
    tier.check_invariants()
    assert tier.counts.removed[RemovalCause.SIZE] > 10_000


def test_random_victims_are_uniform_whatever_was_removed_and_inserted_again():
    rng = random.Random(7)
    keys = [f"k{number}" for number in range(10)]
    tally = Counter()
    for _ in range(4_000):
        tier = LocalTier(max_entries=10, policy="random", rng=rng)
        for key in [*keys[1:], "first victim", "second victim"]:  # the candidates exist from here on
            tier.insert(key, entry(), 0.0)
        for key in ("first victim", "second victim"):
            tier.remove(key, RemovalCause.CLEARED)
        for key in set(keys) - set(tier.entries):
            tier.insert(key, entry(), 0.0)
        for _ in range(4):
            tier.remove("k1", RemovalCause.INVALIDATED)
            tier.insert("k1", entry(), 0.0)
            tier.insert("k2", entry(), 0.0)
        tier.check_invariants()
        tier.insert("new", entry(), 0.0)
        (victim,) = set(keys) - set(tier.entries)
        tally[victim] += 1
    chi_square = sum((tally[key] - 400) ** 2 / 400 for key in keys)
    assert chi_square < 33.7  # 9 degrees of freedom: exceeded once in 10,000 runs with other seeds


def test_random_never_evicts_the_newcomer_and_obeys_the_seed():
    def run(seed):
        tier = new_tier("random", max_entries=5, seed=seed)
        for key in "abcde":
            tier.put(key)
        order = victims(tier, 20)
        assert "new19" in tier.entries
        return order

    assert run(3) == run(3)
    assert run(3) != run(4)


def test_a_tier_that_never_fills_keeps_no_candidates(policy):
    tier = new_tier(policy, max_entries=50)
    for _ in range(3):
        for number in range(50):
            tier.put(f"k{number}")
    assert tier._chooser._candidates is None
    tier.put("one more")
    assert tier._chooser._candidates is not None


def test_dead_candidates_stay_in_bounds(policy):
    tier = new_tier(policy, max_entries=10)
    most = 0
    for number in range(500):
        tier.put(f"k{number % 11}" if number < 50 else "k0")
        most = max(most, len(tier._chooser._candidates or ()))
    assert 10 < most <= 84


@pytest.mark.parametrize("policy", ["lru", "lfu", "fifo"])
def test_an_eviction_does_away_with_the_dead_candidates_that_it_meets(policy):
    tier = new_tier(policy, max_entries=3)
    for key in "abcd":
        tier.put(key)
    for _ in range(5):
        tier.put("b")
    tier.put("e")
    assert sorted(tier.entries) == ["b", "d", "e"]
    assert len(tier._chooser._candidates) == 7  # d, e, and five of b, four of them dead


def test_candidates_go_when_the_tier_shrinks(policy):
    tier = new_tier(policy, max_entries=100)
    for number in range(101):
        tier.put(f"k{number}")
    for number in range(101):
        tier.remove(f"k{number}", RemovalCause.INVALIDATED)
    assert tier._chooser._candidates is None
    tier.put("a")
    assert len(tier) == 1


def test_a_new_policy_is_one_class_and_constant_hits_cannot_stall_an_eviction(monkeypatch):
    class Restless(LruPolicy):
        name = "restless"

        def rank(self, entry):
            entry.used += 1  # as if a reader hit each entry whenever it is looked at
            return entry.used

    monkeypatch.setitem(POLICIES, "restless", Restless)
    tier = LocalTier(max_entries=3, policy="restless", rng=random.Random(1))
    for number in range(20):
        tier.insert(f"k{number}", entry(), 0.0)
        tier.check_invariants()
    assert len(tier) == 3


# --- removal ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cause", list(RemovalCause))
def test_remove_counts_under_its_cause(cause):
    tier = new_tier()
    tier.put("k", size=5)
    assert tier.remove("k", cause) is True
    assert tier.remove("k", cause) is False
    assert (tier.removed(), tier.bytes, len(tier)) == ({cause.value: 1}, 0, 0)


def test_p8_evict_older_removes_only_an_older_version():
    tier = new_tier()
    tier.put("k", seq=5)
    assert tier.evict_older("k", 4) is False
    assert tier.evict_older("k", 5) is False
    assert tier.evict_older("absent", 9) is False
    assert tier.evict_older("k", 6) is True
    assert tier.removed() == {"invalidated": 1}


def test_p10_remove_tagged_removes_older_carriers_only():
    tier = new_tier()
    tier.put("a", seq=4, tags=("red",))
    tier.put("b", seq=5, tags=("red", "blue"))
    tier.put("c", seq=4, tags=("blue", "green", "blue"))
    tier.put("d", seq=4)
    assert tier.remove_tagged("unknown", 9) == 0
    assert tier.remove_tagged("red", 5) == 1
    assert sorted(tier.entries) == ["b", "c", "d"]
    assert tier.remove_tagged("blue", 6) == 2
    assert (sorted(tier.entries), tier.removed()) == (["d"], {"invalidated": 3})
    assert tier._tagged == {}


def test_every_way_out_leaves_the_tag_index_exact(policy):
    tier = new_tier(policy, max_entries=9)
    for number in range(9):
        tier.put(f"k{number}", seq=number, tags=("all", f"t{number % 2}"), expires_at=float(number))
    assert set(tier._tagged) == {"all", "t0", "t1"}
    tier.expire_some(6.0, 100)
    tier.drop_above(7)
    assert tier._tagged == {"all": {"k7"}, "t1": {"k7"}}
    tier.remove_all(RemovalCause.FLUSHED)
    assert tier._tagged == {}


def test_p6_drop_above_removes_what_ran_ahead():
    tier = new_tier()
    for seq in (3, 4, 5, 6):
        tier.put(f"k{seq}", seq=seq)
    assert tier.drop_above(4) == 2
    assert (sorted(tier.entries), tier.removed()) == (["k3", "k4"], {"unproven": 2})
    assert tier.drop_above(4) == 0


def test_the_sweep_resumes_where_it_left_off():
    tier = new_tier()
    for number in range(10):
        tier.put(f"k{number}", expires_at=1.0, shared=number % 2 == 0)
    tier.put("alive", expires_at=1.1)
    gone = [tier.expire_some(1.0, 4) for _ in range(3)]
    assert (sorted(gone), sum(gone), list(tier.entries)) == ([3, 3, 4], 10, ["alive"])
    assert tier.removed() == {"expired": 10}


def test_the_sweep_looks_at_no_more_than_the_limit():
    tier = new_tier()
    for number in range(10):
        tier.put(f"k{number}", expires_at=1.0)
    assert tier.expire_some(1.0, 0) == 0
    assert tier.expire_some(0.9, 7) == 0
    assert tier.expire_some(1.0, 7) == 3  # the rest of the round
    assert tier.expire_some(1.0, 7) == 7  # a new round
    assert tier.expire_some(1.0, 7) == 0


def test_the_sweep_bears_what_happens_between_its_calls():
    tier = new_tier()
    for number in range(10):
        tier.put(f"k{number}", expires_at=1.0)
    tier.expire_some(1.0, 1)
    for number in range(4):
        tier.remove(f"k{number}", RemovalCause.INVALIDATED)
    tier.put("k4")
    tier.put("late", expires_at=1.0)
    assert tier.expire_some(1.0, 100) == 4
    assert sorted(tier.entries) == ["k4", "late"]
    assert tier.expire_some(1.0, 100) == 1
    assert sorted(tier.entries) == ["k4"]


def test_the_sweep_begins_a_new_round_after_remove_all():
    tier = new_tier()
    for number in range(5):
        tier.put(f"k{number}")
    tier.expire_some(1.0, 1)
    tier.remove_all(RemovalCause.CLEARED)
    tier.put("late", expires_at=1.0)
    assert tier.expire_some(1.0, 1) == 1


def test_remove_all_counts_once_and_leaves_a_usable_tier(policy):
    tier = new_tier(policy, max_entries=80)
    for number in range(90):
        tier.put(f"k{number}", tags=("t",), size=2)
    tier.expire_some(0.0, 3)
    assert tier.remove_all(RemovalCause.CLEARED) == 80
    assert (tier.removed(), len(tier), tier.bytes) == ({"size": 10, "cleared": 80}, 0, 0)
    assert tier.remove_all(RemovalCause.CLEARED) == 0
    for number in range(90):
        tier.put(f"k{number}", tags=("t",), size=2)
    assert len(tier) == 80


# --- replacement of the whole tier ------------------------------------------------------------------------------------


def test_p4_a_replacement_is_empty_unproven_and_counts_on(policy):
    old = new_tier(policy, max_entries=3, max_bytes=50)
    for key in "abcd":
        old.put(key, size=4, tags=("t",))
    hits = sum(old.hit(key) is not None for key in "abcd")
    old.tier.horizon = 7.0
    new = old.replacement(RemovalCause.FLUSHED)
    assert hits == 3
    assert (len(new), new.bytes, new.valid_until, new.horizon) == (0, 0, -inf, -inf)
    assert (new.max_entries, new.max_bytes, new.policy) == (3, 50, policy)
    assert new.counts is old.counts
    assert (new.hits, new.ticks) == (3, old.ticks)
    assert new.removed() == {"size": 1, "flushed": 3}
    new.put("z")
    assert (new.hits, new.entries["z"].birth) == (3, 5)


def test_p4_a_replaced_tier_stays_as_it_is_for_readers_in_the_middle_of_a_hit(policy):
    old = new_tier(policy)
    old.put("k", tags=("t",))
    old.tier.valid_until = 9.0
    held = dict(old.entries)
    new = old.replacement(RemovalCause.FLUSHED)
    new.put("k")
    assert (old.entries, old.tier.valid_until, len(old), old.bytes) == (held, 9.0, 1, 1)
    old.tier.check_invariants()
    assert old.hit("k") == "k"
    assert (old.hits, new.hits) == (1, 0)


def test_a_replacement_draws_from_the_same_source_of_chance():
    tier = new_tier("random", max_entries=5)
    new = tier.replacement(RemovalCause.FLUSHED)
    assert new._rng is tier._rng


def test_counts_given_are_used():
    counts = TierCounts()
    tier = LocalTier(max_entries=1, rng=random.Random(1), counts=counts)
    tier.insert("a", entry(), 0.0)
    tier.insert("b", entry(), 0.0)
    assert (counts.inserts, counts.removed[RemovalCause.SIZE]) == (2, 1)


# --- the checker itself -----------------------------------------------------------------------------------------------


def full_tier():
    tier = LocalTier(max_entries=3, max_bytes=3, rng=random.Random(1))
    for key in "abcd":
        tier.insert(key, entry(tags=("t",)), 0.0)
    tier.check_invariants()
    return tier


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tier: setattr(tier, "max_entries", 2), "3 entries exceed max_entries=2"),
        (lambda tier: setattr(tier, "max_bytes", 2), "3 bytes exceed max_bytes=2"),
        (lambda tier: setattr(tier, "bytes", 2), "2 bytes accounted, the entries have 3"),
        (lambda tier: setattr(tier.entries["d"], "birth", 3), "births .2, 3, 3. repeat or exceed 4"),
        (lambda tier: setattr(tier, "births", 3), "births .2, 3, 4. repeat or exceed 3"),
        (lambda tier: tier._tagged["t"].discard("b"), "the tag index is .* the entries carry"),
        (lambda tier: tier._tagged.update(u=set()), "the tag index is .* the entries carry"),
        (lambda tier: tier._chooser._candidates.pop(), "policy lru has the candidates .* for the entries"),
        (lambda tier: tier._chooser._candidates.extend([(0, 0, "")] * 80), "policy lru holds 83 candidates for 3"),
    ],
)
def test_the_checker_names_each_fault(damage, message):
    tier = full_tier()
    damage(tier)
    with pytest.raises(AssertionError, match=message):
        tier.check_invariants()


def test_the_checker_knows_an_empty_tier_as_sound():
    LocalTier(max_entries=1, rng=random.Random(1)).check_invariants()


# --- readers without a lock -------------------------------------------------------------------------------------------


@pytest.fixture
def eager_switches():
    """Let threads switch as often as the interpreter can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def run_all(*bodies):
    failures = []

    def guarded(body):
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - reported by the test below
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.skipif(not GIL, reason="increments may be lost without a GIL")
@pytest.mark.usefixtures("eager_switches")
def test_no_hit_is_lost_by_concurrent_readers(policy):
    tier = LocalTier(max_entries=8, policy=policy, rng=random.Random(1))
    tier.valid_until = inf
    for number in range(8):
        tier.insert(f"k{number}", entry(number), 0.0)
    owner = SimpleNamespace(_tier=tier)

    def reader():
        for number in range(20_000):
            READ(owner, f"k{number % 8}", lambda: 0.0, None)

    run_all(*[reader] * 4)
    assert tier.hits == 80_000
    assert max(held.used for held in tier.entries.values()) == tier.ticks
    if policy == "lfu":
        assert sum(held.frequency for held in tier.entries.values()) == 80_008


@pytest.mark.usefixtures("eager_switches")
def test_readers_see_whole_entries_while_a_mutator_works(policy):
    owner = SimpleNamespace(_tier=new_tier(policy, max_entries=20, max_bytes=40).tier)
    done = threading.Event()
    seen = []

    def reader():
        rng = random.Random(threading.get_ident())
        found = 0
        while not done.is_set():
            key = f"k{rng.randrange(30)}"
            value = READ(owner, key, lambda: 1.0, lambda payload: payload)
            assert value is None or value == (key, "whole")
            found += value is not None
        seen.append(found)

    def mutator():
        rng = random.Random(5)
        try:
            for number in range(6_000):
                tier = owner._tier
                key = f"k{rng.randrange(30)}"
                tags = (f"t{number % 3}",) if number % 2 else ()
                held = make_entry(
                    (key, "whole"),
                    seq=number,
                    size=rng.randrange(1, 5),
                    expires_at=rng.choice([0.5, 2.0, inf]),
                    shared=rng.random() < 0.5,
                    tags=tags,
                )
                tier.insert(key, held, 1.0)
                if number % 7 == 0:
                    tier.evict_older(f"k{rng.randrange(30)}", number)
                elif number % 50 == 1:
                    tier.remove_tagged("t1", number)
                elif number % 50 == 2:
                    tier.expire_some(1.0, 5)
                elif number % 400 == 3:
                    tier.drop_above(number - 3)
                elif number % 700 == 4:
                    tier.remove_all(RemovalCause.CLEARED)
                elif number % 900 == 5:
                    fresh = tier.replacement(RemovalCause.FLUSHED)
                    fresh.valid_until = inf
                    owner._tier = fresh
        finally:
            done.set()

    run_all(mutator, reader, reader, reader)
    tier = owner._tier
    tier.check_invariants()
    assert sum(seen) > 0
    assert tier.counts.inserts == 6_000
    assert tier.counts.inserts == len(tier) + sum(tier.counts.removed.values())
