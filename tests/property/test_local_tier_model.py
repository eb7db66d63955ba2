"""The local tier against a naive model, for every policy, over any sequence of operations."""

import random
from math import inf

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coherent_cache.core.entries import RemovalCause, make_entry
from coherent_cache.core.local_tier import LocalTier

KEYS = st.sampled_from([f"k{number}" for number in range(12)])
TAGS = st.lists(st.sampled_from(["red", "green", "blue"]), max_size=3).map(tuple)
SEQS = st.integers(0, 30)
CAUSES = st.sampled_from(RemovalCause)


class Record:
    """What the model knows of one entry."""

    def __init__(self, held, uses, step):
        self.held = held
        self.uses = uses
        self.used = self.born = step


class TierMachine(RuleBasedStateMachine):
    """Entries, victims, bytes and counts of the tier must be those of a model that scans everything."""

    policy = "lru"

    @initialize(max_entries=st.integers(1, 6), max_bytes=st.none() | st.integers(1, 40), seed=st.integers(0, 9))
    def start(self, max_entries, max_bytes, seed):
        rng = random.Random(seed)
        self.tier = LocalTier(max_entries=max_entries, max_bytes=max_bytes, policy=self.policy, rng=rng)
        self.tier.valid_until = inf
        self.now = 0.0
        self.step = 0
        self.hits = 0
        self.model = {}
        self.inserts = 0
        self.too_large = 0
        self.removed = dict.fromkeys(RemovalCause, 0)

    def drop(self, key, cause):
        del self.model[key]
        self.removed[cause] += 1

    def drop_where(self, condition, cause):
        gone = [key for key, record in self.model.items() if condition(record.held)]
        for key in gone:
            self.drop(key, cause)
        return len(gone)

    def room_for(self, size):
        limit = inf if self.tier.max_bytes is None else self.tier.max_bytes
        fits = sum(record.held.size for record in self.model.values()) + size <= limit
        return fits and len(self.model) < self.tier.max_entries

    def model_victims(self, size):
        """The keys that must go, one by one, until ``size`` fits; for "random", those that did go."""
        if self.policy == "random":
            gone = [key for key in self.model if key not in self.tier.entries]
            assert bool(gone) != self.room_for(size)
            yield from gone
            assert self.room_for(size)
            return
        rank = {
            "lru": lambda record: record.used,
            "lfu": lambda record: (record.uses, record.used),
            "fifo": lambda record: record.born,
        }[self.policy]
        while not self.room_for(size):
            yield min(self.model, key=lambda key: rank(self.model[key]))

    @rule(
        key=KEYS, seq=SEQS, size=st.integers(1, 15), ttl=st.sampled_from([1, 3, inf]), shared=st.booleans(), tags=TAGS
    )
    def insert(self, key, seq, size, ttl, shared, tags):
        self.step += 1
        held = make_entry(object(), seq=seq, size=size, expires_at=self.now + ttl, shared=shared, tags=tags)
        stored = self.tier.insert(key, held, self.now)
        uses = 1
        if key in self.model:
            uses += self.model[key].uses
            self.drop(key, RemovalCause.REPLACED)
        assert stored == (self.tier.max_bytes is None or size <= self.tier.max_bytes)
        if not stored:
            self.too_large += 1
            return
        for victim in self.model_victims(size):
            expired = self.model[victim].held.expires_at <= self.now
            self.drop(victim, RemovalCause.EXPIRED if expired else RemovalCause.SIZE)
        self.inserts += 1
        self.model[key] = Record(held, uses, self.step)

    @rule(key=KEYS)
    def hit(self, key):
        self.step += 1
        entry = self.tier.entries.get(key)
        if entry is not None and (self.now < entry.deadline or self.now < entry.coded_deadline):
            self.tier.ticks = entry.used = self.tier.ticks + 1
            self.hits += 1
            self.model[key].uses += 1
            self.model[key].used = self.step
            assert self.now < self.model[key].held.expires_at
        elif entry is not None:
            assert self.model[key].held.expires_at <= self.now

    @rule(seconds=st.integers(1, 2))
    def advance(self, seconds):
        self.now += seconds

    @rule(key=KEYS, cause=CAUSES)
    def remove(self, key, cause):
        present = key in self.model
        assert self.tier.remove(key, cause) == present
        if present:
            self.drop(key, cause)

    @rule(key=KEYS, seq=SEQS)
    def evict_older(self, key, seq):
        older = key in self.model and self.model[key].held.seq < seq
        assert self.tier.evict_older(key, seq) == older
        if older:
            self.drop(key, RemovalCause.INVALIDATED)

    @rule(tag=st.sampled_from(["red", "green", "blue", "unknown"]), seq=SEQS)
    def remove_tagged(self, tag, seq):
        gone = self.drop_where(lambda held: tag in held.tags and held.seq < seq, RemovalCause.INVALIDATED)
        assert self.tier.remove_tagged(tag, seq) == gone

    @rule(seq=SEQS)
    def drop_above(self, seq):
        gone = self.drop_where(lambda held: held.seq > seq, RemovalCause.UNPROVEN)
        assert self.tier.drop_above(seq) == gone

    @rule(limit=st.integers(0, 5))
    def expire_some(self, limit):
        before = set(self.tier.entries)
        gone = self.tier.expire_some(self.now, limit)
        lost = before - set(self.tier.entries)
        assert len(lost) == gone <= limit
        for key in lost:
            assert self.model[key].held.expires_at <= self.now
            self.drop(key, RemovalCause.EXPIRED)

    @rule()
    def two_rounds_leave_no_expired_entry(self):
        gone = self.tier.expire_some(self.now, 20) + self.tier.expire_some(self.now, 20)
        assert gone == self.drop_where(lambda held: held.expires_at <= self.now, RemovalCause.EXPIRED)

    @precondition(lambda self: self.step % 5 == 0)
    @rule(cause=CAUSES)
    def remove_all(self, cause):
        assert self.tier.remove_all(cause) == len(self.model)
        self.drop_where(lambda _: True, cause)

    @precondition(lambda self: self.step % 5 == 0)
    @rule(cause=CAUSES)
    def replace_the_tier(self, cause):
        self.tier = self.tier.replacement(cause)
        assert self.tier.valid_until == -inf
        self.drop_where(lambda _: True, cause)

    @invariant()
    def the_tier_is_the_model(self):
        if not hasattr(self, "tier"):
            return
        self.tier.check_invariants()
        assert self.tier.entries.keys() == self.model.keys()
        for key, record in self.model.items():
            entry = self.tier.entries[key]
            assert (entry.value, entry.seq, entry.tags) == (record.held.value, record.held.seq, record.held.tags)
            assert (entry.size, entry.expires_at) == (record.held.size, record.held.expires_at)
        assert self.tier.hits == self.hits
        assert self.tier.counts.inserts == self.inserts
        assert self.tier.counts.rejected_too_large == self.too_large
        assert self.tier.counts.removed == self.removed


@pytest.mark.parametrize("policy", ["lru", "lfu", "fifo", "random"])
def test_the_tier_behaves_as_the_model(policy):
    machine = type(f"{policy.title()}Machine", (TierMachine,), {"policy": policy})
    machine.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
    machine.TestCase("runTest").runTest()
