"""One shard: what may enter the local tier, what leaves it, and what moves position, horizon, generation and state.

Names carry the rule (P), catalogue line (I), review attack (A) or corrected rule (R). Numbers are versions; the shard
starts coherent at position 10 on server A, at time 100, with a bound of 5 seconds.
"""

import random
from math import inf
from types import SimpleNamespace

import pytest

from coherent_cache.core import shard as shard_module
from coherent_cache.core.entries import RemovalCause, make_entry
from coherent_cache.core.local_tier import LocalTier
from coherent_cache.core.shard import MAX_TAG_FLOORS, PAST_EPOCHS, SWEEP_ENTRIES, Shard
from coherent_cache.core.states import TRANSITIONS, State, Trigger
from coherent_cache.core.stats import Counters
from coherent_cache.events import (
    FillRefused,
    HistoryLost,
    InvalidationReceived,
    MessageDamaged,
    MessageGap,
    Resynced,
    StateChanged,
)
from coherent_cache.versions import Version
from coherent_cache.wire import Kind
from tests.unit.core.model import (
    EPOCH,
    MAX_STALENESS,
    OTHER_EPOCH,
    message,
    nonce,
    read_reply,
    sync_reply,
    write_reply,
)

NOW = 100.0
SET, DELETE, TOUCH, TAG, CLEAR, BATCH, RELEASE = Kind


class Lock:
    """Counts how often it is taken; ``between`` runs whenever it is free again."""

    def __init__(self):
        self.taken = self.depth = 0
        self.between = None

    def __enter__(self):
        self.taken += self.depth == 0
        self.depth += 1

    def __exit__(self, *exc_info):
        self.depth -= 1
        if self.depth == 0 and self.between is not None:
            act, self.between = self.between, None
            act()


class Bench:
    """A shard with everything around it at hand."""

    def __init__(self, *, max_entries=100, start=True):
        self.events = []
        self.counters = Counters()
        self.lock = Lock()
        self.shard = Shard(
            0,
            LocalTier(max_entries=max_entries, rng=random.Random(0)),
            max_staleness=MAX_STALENESS,
            lock=self.lock,
            counters=self.counters,
            emit=self.events.append,
        )
        self.shard.tick(NOW)
        if start:
            self.resync(10)
            self.events.clear()

    def __getattr__(self, name):
        return getattr(self.shard, name)

    def register(self, *keys):
        return self.shard.register(keys)

    def absorb(self, token, *items, reply=None, now=NOW, tags=()):
        """Take in (key, version) pairs with a value, (key, version, None) without."""
        full = [
            (key, seq, None if none else make_entry(f"{key}@{seq}", seq=seq, size=1, tags=tags))
            for key, seq, *none in items
        ]
        self.shard.absorb(token, reply or read_reply(), full, now=now)

    def fill(self, *items, **options):
        """Register, read and absorb with nothing in between."""
        self.absorb(self.register(*(key for key, *_ in items)), *items, **options)

    def resync(self, seq, *, server="A", sent_at=NOW, now=None, **options):
        now = sent_at if now is None else now
        self.shard.resync(sync_reply(seq, **options), server=server, sent_at=sent_at, now=now)

    def apply(self, kind, seq, *names, now=NOW, **options):
        return self.shard.apply(message(kind, seq, *names, **options), now=now)

    def prove(self, seq, *, sent_at, **options):
        return self.shard.prove(sync_reply(seq, **options), sent_at=sent_at)

    def held(self):
        """Versions held, by key."""
        return {key: entry.seq for key, entry in self.shard.tier.entries.items()}

    def tokens(self):
        return bool(self.shard._tokens)

    def of(self, kind):
        return [event for event in self.events if type(event) is kind]

    def removed(self):
        return {cause.value: count for cause, count in self.shard.tier.counts.removed.items() if count}

    def check(self):
        tier = self.shard.tier
        tier.check_invariants()
        assert tier.counts.inserts == len(tier) + sum(tier.counts.removed.values())
        assert self.lock.depth == 0


@pytest.fixture
def new_bench():
    made = []

    def make(**options):
        made.append(Bench(**options))
        return made[-1]

    yield make
    for bench in made:
        bench.check()


@pytest.fixture
def bench(new_bench):
    return new_bench()


def refused(bench):
    """Why fills were refused, taken from the trace."""
    return [event.cause for event in bench.of(FillRefused)]


# --- P7: tokens and marks ---------------------------------------------------------------------------------------------


def test_p7_a_fill_that_nothing_overtook_is_kept(bench):
    bench.fill(("k", 9))
    assert bench.held() == {"k": 9}
    assert bench.counters.fills_refused == 0
    assert not bench.tokens()


@pytest.mark.parametrize("kind", [SET, DELETE, TOUCH, BATCH])
def test_p7_i1_a_fill_overtaken_by_a_message_is_refused(bench, kind):
    token = bench.register("k")
    bench.apply(kind, 11, "k")  # nothing local to evict
    bench.absorb(token, ("k", 9))
    assert bench.held() == {}
    assert bench.counters.fills_refused == 1


def test_p7_i1_a_bulk_fill_loses_only_the_overtaken_keys(bench):
    token = bench.register("a", "b", "c")
    bench.apply(SET, 11, "b", "x")
    bench.absorb(token, ("a", 8), ("b", 9), ("c", 7))
    assert bench.held() == {"a": 8, "c": 7}


def test_p7_a_message_marks_every_token_of_its_key(bench):
    tokens = [bench.register("k"), bench.register("k"), bench.register("k", "x"), bench.register("y", "k")]
    bench.apply(SET, 11, "k")
    for token in tokens:
        bench.absorb(token, ("k", 10))
    assert bench.held() == {}


def test_p7_a_message_marks_no_token_of_another_key(bench):
    single, bulk = bench.register("k"), bench.register("k", "x")
    bench.apply(SET, 11, "other")
    bench.absorb(single, ("k", 9))
    bench.absorb(bulk, ("k", 10), ("x", 8))
    assert bench.held() == {"k": 10, "x": 8}


def test_p7_the_version_that_a_message_announces_may_enter(bench):
    single, bulk = bench.register("k"), bench.register("x", "y")
    bench.apply(SET, 11, "k", "x")
    bench.absorb(single, ("k", 11))
    bench.absorb(bulk, ("x", 11), ("y", 3))
    assert bench.held() == {"k": 11, "x": 11, "y": 3}


def test_p7_the_newest_mark_counts_whatever_its_order(bench):
    single, bulk = bench.register("k"), bench.register("k", "x")
    bench.apply(SET, 11, "k")
    bench.apply(SET, 12, "k")
    bench.fill(("k", 11, None))  # a reply that was on its way while the messages overtook it
    bench.absorb(single, ("k", 11))
    bench.absorb(bulk, ("k", 11))
    assert bench.held() == {}


def test_p7_i2_a_fill_overtaken_by_an_own_write_is_refused(bench):
    reader, writer = bench.register("k"), bench.register("k")
    bench.absorb(writer, ("k", 11), reply=write_reply(11))
    bench.shard.tier.remove("k", RemovalCause.SIZE)
    bench.absorb(reader, ("k", 9))
    assert bench.held() == {}


def test_p7_i2_a_fill_overtaken_by_an_own_delete_is_refused(bench):
    reader, writer = bench.register("k"), bench.register("k")
    bench.absorb(writer, ("k", 11, None), reply=write_reply(11))
    bench.absorb(reader, ("k", 9))
    assert bench.held() == {}


def test_p7_i2_own_writes_whose_replies_come_in_another_order_end_with_the_newer(bench):
    first, second = bench.register("k"), bench.register("k")
    bench.absorb(second, ("k", 12), reply=write_reply(12))
    bench.absorb(first, ("k", 11), reply=write_reply(11))
    assert bench.held() == {"k": 12}


def test_p7_r6_a_reply_is_knowledge_even_if_its_entry_is_gone(bench):
    """A3: T1 read 9; T2 was given 10, whose entry was evicted; T1 must not bring 9 back."""
    first, second = bench.register("k"), bench.register("k")
    bench.absorb(second, ("k", 10))
    bench.shard.tier.remove("k", RemovalCause.SIZE)
    bench.absorb(first, ("k", 9))
    assert bench.held() == {}


def test_p7_r6_a_reply_is_knowledge_for_bulk_reads_as_well(bench):
    first, second = bench.register("k", "x"), bench.register("k", "y")
    bench.absorb(second, ("k", 10), ("y", 5))
    bench.shard.tier.remove("k", RemovalCause.SIZE)
    bench.absorb(first, ("k", 9), ("x", 5))
    assert bench.held() == {"x": 5, "y": 5}


def test_p7_a_bulk_read_alone_fills_everything(bench):
    bench.fill(("a", 1), ("b", 2), ("c", 3, None))
    assert bench.held() == {"a": 1, "b": 2}


def test_p7_r6_a_reply_evicts_what_is_older_even_if_nothing_may_be_inserted(bench):
    bench.fill(("k", 9), ("x", 9))
    bench.doubt("cut")
    bench.fill(("k", 10), ("x", 9))
    assert bench.held() == {"x": 9}
    assert bench.counters.fills_refused == 2
    assert bench.removed() == {"invalidated": 1}


def test_p7_r6_a_value_that_must_not_be_kept_evicts_what_is_older(bench):
    bench.fill(("k", 9))
    bench.fill(("k", 10, None))
    assert bench.held() == {}


def test_p7_a19_absence_is_knowledge(bench):
    """Absent at clock 10: given as 11. Whatever a slower read saw up to 10 is older; a write that got 11 is not."""
    bench.fill(("held", 10))
    slow, writer = bench.register("k"), bench.register("x")
    bench.fill(("k", 11, None), ("x", 11, None), ("held", 11, None))
    bench.absorb(slow, ("k", 10))
    bench.absorb(writer, ("x", 11), reply=write_reply(11))
    assert bench.held() == {"x": 11}


def test_p7_a_newer_entry_stays(bench):
    old = bench.register("k")
    new = bench.register("k")
    bench.apply(SET, 11, "k")
    bench.absorb(new, ("k", 11))
    bench.shard.trace = True
    old.marks.clear()  # as if nothing had been learnt
    bench.absorb(old, ("k", 10))
    assert bench.held() == {"k": 11}
    assert refused(bench) == ["newer entry"]


def test_p7_an_entry_of_the_same_version_is_replaced(bench):
    bench.fill(("k", 9))
    before = bench.shard.tier.entries["k"]
    bench.fill(("k", 9))
    assert bench.shard.tier.entries["k"] is not before
    assert bench.removed() == {"replaced": 1}


def test_p7_a_newer_value_takes_the_place_of_an_older_entry(bench):
    bench.fill(("k", 8))
    bench.fill(("k", 9))
    assert bench.held() == {"k": 9}


def test_p7_what_was_learnt_does_not_outlive_the_commands_under_way(bench):
    """A command that is registered later is executed later: nothing learnt before may refuse what it brings."""
    token = bench.register("k")
    bench.apply(SET, 11, "k")
    bench.absorb(token, ("k", 9))
    bench.fill(("k", 11))
    bench.apply(CLEAR, 12)
    bench.fill(("k", 13))
    assert bench.held() == {"k": 13}


def test_p7_r4_checking_and_inserting_are_one_step(bench):
    """A14: a message that arrives as soon as the lock is free finds the fill either not there or marked."""
    token = bench.register("k")
    bench.lock.between = lambda: bench.apply(SET, 11, "k")
    bench.absorb(token, ("k", 9))
    assert bench.held() == {}
    assert bench.lock.between is None


def test_p7_a_token_is_released_once_and_for_all(bench):
    single, bulk = bench.register("k"), bench.register("k", "x")
    other = bench.register("k")
    for _ in range(2):
        bench.release(single)
        bench.release(bulk)
        assert bench.tokens()
    bench.release(other)
    assert not bench.tokens()


def test_p7_a_token_is_released_even_if_taking_in_fails(bench):
    token = bench.register("k")

    class Items(list):
        def __iter__(self):
            yield "k", 9, make_entry("v", seq=9, size=1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        bench.shard.absorb(token, read_reply(), Items(), now=NOW)
    assert not bench.tokens()


# --- P5, P6, P10, P16: what forbids an insertion ----------------------------------------------------------------------


def before_the_first_resync(bench):
    bench.shard.state = State.CONNECTING


def suspect(bench):
    bench.suspect("late")


def cut(bench):
    bench.doubt("cut")


def lapsed(bench):
    bench.tick(NOW + MAX_STALENESS + 0.1)


def resynced(bench):
    bench.resync(10)


def flushed_and_resynced(bench):
    bench.resync(50)


def damaged_and_resynced(bench):
    bench.distrust("damaged")
    bench.resync(10)


def doubt_about_everything(bench):
    bench.distrust_all()


def cleared(bench):
    bench.apply(CLEAR, 11)


def cleared_by_myself(bench):
    bench.learn_floor(write_reply(11), CLEAR, ())


def tag_invalidated(bench):
    bench.apply(TAG, 11, "blue", "red")


def tag_invalidated_by_myself(bench):
    bench.learn_floor(write_reply(11), TAG, ("red",))


def ambiguous_write(bench):
    bench.distrust_keys(["k"])


@pytest.mark.parametrize(
    ("happens", "cause"),
    [
        (before_the_first_resync, "not coherent"),
        (suspect, "not coherent"),
        (cut, "not coherent"),
        (lapsed, "not coherent"),
        (resynced, "generation"),
        (flushed_and_resynced, "generation"),
        (damaged_and_resynced, "generation"),
        (doubt_about_everything, "generation"),
        (cleared, "floor"),
        (cleared_by_myself, "floor"),
        (tag_invalidated, "tag floor"),
        (tag_invalidated_by_myself, "tag floor"),
        (ambiguous_write, "token marked"),
    ],
)
@pytest.mark.parametrize("other", [(), ("x",)])
def test_p7_a_fill_is_refused_after(bench, happens, cause, other):
    bench.shard.trace = True
    token = bench.register("k", *other)
    happens(bench)
    bench.absorb(token, ("k", 10), tags=("red",))
    assert bench.held() == {}
    assert refused(bench) == [cause]
    assert bench.counters.fills_refused == 1
    assert not bench.tokens()


def test_p5_a_fill_is_refused_once_the_bound_is_past_though_no_tick_noticed(bench):
    token = bench.register("k")
    bench.absorb(token, ("k", 10), now=NOW + MAX_STALENESS + 0.1)
    assert bench.shard.state is State.COHERENT
    assert bench.held() == {}


def test_p5_a_fill_is_kept_up_to_the_bound(bench):
    bench.fill(("k", 10), now=NOW + MAX_STALENESS)
    assert bench.held() == {"k": 10}


def test_i17_nothing_is_kept_before_the_first_resync(new_bench):
    bench = new_bench(start=False)
    token = bench.register("k")
    bench.fill(("k", 9))
    bench.apply(SET, 11, "k")
    assert bench.held() == {}
    assert bench.shard.epoch is None
    assert bench.shard.state is State.CONNECTING
    bench.resync(11)
    bench.absorb(token, ("k", 9))  # sent before the subscription was confirmed
    assert bench.held() == {}


def test_no_trace_no_event_per_refusal(bench):
    token = bench.register("k")
    bench.apply(SET, 11, "k")
    bench.absorb(token, ("k", 9))
    assert bench.events == []
    assert bench.counters.fills_refused == 1


# --- P16: another server ----------------------------------------------------------------------------------------------


def test_p16_a6_what_another_server_answers_is_not_kept(bench):
    bench.fill(("k", 10), reply=read_reply(server="B"))
    assert bench.held() == {}
    bench.resync(10, server="B")
    bench.fill(("k", 10), reply=read_reply(server="A"))  # a pooled connection to the old primary goes on answering
    assert bench.held() == {}
    bench.fill(("k", 10), reply=read_reply(server="B"))
    assert bench.held() == {"k": 10}


@pytest.mark.parametrize("seq", [5, 500])
@pytest.mark.parametrize("value", [(), (None,)])
def test_p16_r6_what_another_server_says_about_a_key_outweighs_any_version(bench, seq, value):
    """Fail-over to a replica that lags, not noticed yet: its 5 is newer than the 10 that is held here."""
    bench.fill(("k", 10), ("x", 10))
    slow = bench.register("k")
    bench.fill(("k", seq, *value), reply=write_reply(seq, server="B"))
    assert bench.held() == {"x": 10}
    bench.absorb(slow, ("k", 10))  # on its way from the old server since before
    assert bench.held() == {"x": 10}


@pytest.mark.parametrize("kind", [CLEAR, TAG])
def test_p16_r6_a_floor_of_another_server_outweighs_any_version(bench, kind):
    bench.apply(CLEAR, 11)
    token = bench.register("k")
    bench.fill(("x", 20), tags=("red",))
    bench.learn_floor(write_reply(6, server="B"), kind, ("red",))
    bench.absorb(token, ("k", 20), tags=("red",))
    assert bench.held() == {}
    assert bench.shard.tier.horizon == NOW


def test_p9_r6_a_write_acknowledged_in_a_past_epoch_outweighs_any_version(bench):
    """Fail-over back to a server that never saw the new epoch."""
    bench.resync(3, epoch=OTHER_EPOCH)
    bench.fill(("k", 3), ("x", 3), reply=read_reply(epoch=OTHER_EPOCH))
    slow = bench.register("k")
    bench.fill(("k", 11), reply=write_reply(11, epoch=EPOCH))
    bench.absorb(slow, ("k", 3), reply=read_reply(epoch=OTHER_EPOCH))
    assert bench.held() == {"x": 3}


# --- P9: epochs -------------------------------------------------------------------------------------------------------


def lost_in_a_read(bench, epoch):
    bench.fill(("x", 1), reply=read_reply(epoch=epoch))


def lost_in_a_write(bench, epoch):
    bench.fill(("x", 1), reply=write_reply(1, epoch=epoch))


def lost_in_an_own_clear(bench, epoch):
    bench.learn_floor(write_reply(1, epoch=epoch), CLEAR, ())


def lost_in_an_own_tag_invalidation(bench, epoch):
    bench.learn_floor(write_reply(1, epoch=epoch), TAG, ("red",))


def lost_in_a_message(bench, epoch):
    assert not bench.apply(SET, 1, "x", epoch=epoch)


@pytest.mark.parametrize(
    "seen", [lost_in_a_read, lost_in_a_write, lost_in_an_own_clear, lost_in_an_own_tag_invalidation, lost_in_a_message]
)
@pytest.mark.parametrize("epoch", [OTHER_EPOCH, b""], ids=["another epoch", "no clock"])
def test_p9_i19_another_epoch_ends_the_history(bench, seen, epoch):
    woken = []
    bench.shard.on_doubt = lambda: woken.append(1)
    bench.fill(("k", 10), ("x", 10))
    token = bench.register("k")
    generation = bench.shard.generation
    seen(bench, epoch)
    shard = bench.shard
    assert bench.held() == {}
    assert (shard.epoch, shard.position, shard.synced) == (None, None, False)
    assert shard.state is State.CONNECTING
    assert (shard.tier.horizon, shard.tier.valid_until) == (-inf, -inf)
    assert shard.generation > generation
    assert woken == [1]
    assert bench.counters.flushes == 1
    assert bench.removed() == {"flushed": 2}
    (event,) = bench.of(HistoryLost)
    assert event.dropped == 2
    # The history that a resync finds is another one, whatever its numbers: what was under way is void.
    bench.resync(10, epoch=OTHER_EPOCH)
    bench.absorb(token, ("k", 10), reply=read_reply(epoch=OTHER_EPOCH))
    assert bench.held() == {}


def test_p9_a_lost_history_is_noticed_without_anybody_to_wake(bench):
    lost_in_a_read(bench, OTHER_EPOCH)
    assert bench.shard.state is State.CONNECTING


def test_p9_a_lost_history_is_noticed_while_disconnected(bench):
    lapsed(bench)
    bench.fill(("k", 10), reply=read_reply(epoch=OTHER_EPOCH))
    assert bench.shard.state is State.DISCONNECTED
    assert bench.shard.epoch is None


def test_p9_a_late_reply_or_message_of_a_past_epoch_flushes_nothing(bench):
    bench.resync(3, epoch=OTHER_EPOCH)
    bench.fill(("k", 3), ("x", 3), reply=read_reply(epoch=OTHER_EPOCH))
    generation = bench.shard.generation
    bench.fill(("x", 10), reply=read_reply(epoch=EPOCH))
    assert bench.apply(SET, 11, "k", epoch=EPOCH)
    assert bench.held() == {"k": 3}
    assert (bench.shard.position, bench.shard.generation) == (3, generation)
    assert bench.shard.state is State.COHERENT
    assert bench.counters.applied == 0


def test_p9_a_late_floor_of_a_past_epoch_leaves_the_history(bench):
    bench.resync(3, epoch=OTHER_EPOCH)
    bench.learn_floor(write_reply(11, epoch=EPOCH), CLEAR, ())
    assert bench.shard.epoch == OTHER_EPOCH
    bench.fill(("k", 3), reply=read_reply(epoch=OTHER_EPOCH))
    assert bench.held() == {"k": 3}


def test_p9_only_the_latest_past_epochs_are_remembered(bench):
    epochs = [b"%016d" % number for number in range(PAST_EPOCHS + 1)]
    for epoch in epochs:
        bench.resync(1, epoch=epoch)
    assert bench.apply(SET, 1, "k", epoch=epochs[0])  # the oldest that is known
    assert not bench.apply(SET, 1, "k", epoch=EPOCH)  # the one before: as good as new


def test_p9_while_no_history_is_known_messages_and_replies_say_nothing(bench):
    lost_in_a_read(bench, OTHER_EPOCH)
    generation, flushes = bench.shard.generation, bench.counters.flushes
    assert bench.apply(SET, 2, "k", epoch=OTHER_EPOCH)
    assert bench.apply(SET, 12, "k", epoch=EPOCH)
    bench.fill(("k", 2), reply=read_reply(epoch=OTHER_EPOCH))
    assert (bench.shard.generation, bench.counters.flushes) == (generation, flushes)
    assert bench.held() == {}
    assert len(bench.of(HistoryLost)) == 1


def test_p9_after_the_resync_the_new_history_fills_from_its_first_number(bench):
    """The floor of a clear belongs to the history that was lost, and so do floors of tags."""
    token = bench.register("other")
    bench.apply(CLEAR, 11)
    bench.apply(TAG, 12, "red")
    lost_in_a_message(bench, OTHER_EPOCH)
    bench.resync(1, epoch=OTHER_EPOCH)
    bench.fill(("k", 1), reply=read_reply(epoch=OTHER_EPOCH), tags=("red",))
    assert bench.held() == {"k": 1}
    bench.release(token)


def test_p6_after_a_flush_the_history_fills_from_its_first_number(bench):
    """Fail-over to a replica that lacks the clear: a lower number in the same epoch."""
    token = bench.register("other")
    bench.apply(CLEAR, 11)
    bench.apply(TAG, 12, "red")
    bench.resync(10, history=b"x")
    bench.fill(("k", 10), tags=("red",))
    assert bench.held() == {"k": 10}
    bench.release(token)


def test_p6_a_clear_ahead_of_the_proven_position_may_never_have_been(bench):
    """Own clear, number 12, was lost in a fail-over that kept position 10."""
    bench.learn_floor(write_reply(12), CLEAR, ())
    bench.resync(11, entries=(message(SET, 10), message(SET, 11, "k")))
    bench.fill(("k", 11))
    assert bench.held() == {"k": 11}


# --- P10: floors ------------------------------------------------------------------------------------------------------


def test_p10_a_clear_empties_the_tier_and_keeps_the_horizon(bench):
    bench.fill(("a", 9), ("b", 10))
    generation = bench.shard.generation
    assert bench.apply(CLEAR, 11)
    assert bench.held() == {}
    assert bench.shard.tier.valid_until == NOW + MAX_STALENESS
    assert (bench.shard.generation, bench.shard.position) == (generation, 11)
    assert bench.removed() == {"cleared": 2}
    assert bench.counters.applied == 1


def test_p10_a_clear_of_nothing_concerns_nothing(bench):
    assert bench.apply(CLEAR, 11)
    assert bench.counters.applied == 0


def test_p10_what_was_written_after_a_clear_may_enter(bench):
    token = bench.register("k")
    bench.apply(CLEAR, 11)
    bench.absorb(token, ("k", 12), reply=write_reply(12))
    assert bench.held() == {"k": 12}


def test_p10_a_clear_that_was_known_already_changes_nothing(bench):
    """The message of an own clear comes after its reply; what was filled in between stays."""
    bench.learn_floor(write_reply(11), CLEAR, ())
    bench.fill(("k", 12))
    bench.apply(CLEAR, 11)
    assert bench.held() == {"k": 12}
    assert bench.counters.applied == 0


def test_p10_a_tag_invalidation_removes_what_carries_the_tag_and_is_older(bench):
    bench.fill(("red", 10), tags=("red",))
    bench.fill(("both", 10), tags=("blue", "red"))
    bench.fill(("green", 10), tags=("green",))
    bench.fill(("new", 12), tags=("red",))
    bench.apply(TAG, 11, "red", "blue")
    assert bench.held() == {"green": 10, "new": 12}
    assert bench.counters.applied == 1


def test_p10_an_own_tag_invalidation_works_like_its_message(bench):
    bench.fill(("red", 10), tags=("red",))
    token = bench.register("k")
    bench.learn_floor(write_reply(11), TAG, ("red",))
    bench.absorb(token, ("k", 10), tags=("red",))
    assert bench.held() == {}


def test_a20_a_fill_in_flight_with_another_tag_is_kept(bench):
    token = bench.register("k")
    bench.apply(TAG, 11, "red")
    bench.absorb(token, ("k", 10), tags=("blue",))
    assert bench.held() == {"k": 10}


def test_a20_a_fill_in_flight_without_tags_is_kept(bench):
    token = bench.register("k")
    bench.apply(TAG, 11, "red")
    bench.absorb(token, ("k", 10))
    assert bench.held() == {"k": 10}


@pytest.mark.parametrize(("seq", "kept"), [(10, False), (11, False), (12, True)])
def test_a20_a_fill_in_flight_is_kept_if_it_is_newer_than_the_tags_invalidation(bench, seq, kept):
    token = bench.register("k")
    bench.apply(TAG, 11, "red")
    bench.absorb(token, ("k", seq), tags=("blue", "red"))
    assert bench.held() == ({"k": seq} if kept else {})


def test_a20_the_highest_floor_of_a_tag_counts_whatever_the_order(bench):
    token = bench.register("k")
    bench.learn_floor(write_reply(13), TAG, ("red",))  # an own one, ahead of the stream
    bench.apply(TAG, 11, "red")
    bench.absorb(token, ("k", 12), tags=("red",))
    assert bench.held() == {}


def test_a20_tag_floors_live_as_long_as_the_oldest_token(bench):
    assert bench.apply(TAG, 11, "red")
    assert bench.shard._tag_floors == {}  # nobody needs it
    assert bench.counters.applied == 0
    first, second = bench.register("a"), bench.register("b")
    bench.apply(TAG, 12, "red")
    assert bench.counters.applied == 1
    bench.release(first)
    assert bench.shard._tag_floors == {"red": 12}
    bench.absorb(second, ("b", 13), tags=("red",))
    assert bench.shard._tag_floors == {}


def test_a20_too_many_tag_floors_refuse_all_fills_in_flight(bench, monkeypatch):
    assert MAX_TAG_FLOORS == 10_000
    monkeypatch.setattr(shard_module, "MAX_TAG_FLOORS", 2)
    bench.shard.trace = True
    token = bench.register("k")
    bench.apply(TAG, 11, "a", "b")
    assert len(bench.shard._tag_floors) == 2
    bench.apply(TAG, 12, "c")
    assert bench.shard._tag_floors == {}
    bench.absorb(token, ("k", 13))
    assert refused(bench) == ["generation"]
    bench.fill(("k", 13))  # sent after it
    assert bench.held() == {"k": 13}


# --- P8: messages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SET, DELETE, TOUCH, BATCH])
def test_p8_a_message_evicts_by_version(bench, kind):
    bench.fill(("older", 10), ("same", 11), ("newer", 12), ("other", 3))
    assert bench.apply(kind, 11, "older", "same", "newer", "unknown")
    assert bench.held() == {"same": 11, "newer": 12, "other": 3}
    assert (bench.shard.position, bench.shard.nonce) == (11, nonce(11))
    assert (bench.counters.received, bench.counters.applied) == (1, 1)


def test_p8_one_message_both_evicts_and_marks(bench):
    bench.fill(("a", 10), ("b", 10))
    tokens = [bench.register("a"), bench.register("b")]
    bench.apply(SET, 11, "a", "b")
    for token, key in zip(tokens, "ab", strict=True):
        bench.absorb(token, (key, 10))
    assert bench.held() == {}


def test_p8_a_message_is_applied_if_it_evicts_or_marks_and_ignored_otherwise(bench):
    bench.fill(("k", 10))
    bench.apply(SET, 11, "k")
    token = bench.register("k")
    bench.apply(SET, 12, "k")
    bench.release(token)
    bench.apply(SET, 13, "k")
    assert (bench.counters.received, bench.counters.applied) == (3, 2)


def test_p8_messages_are_events_only_if_somebody_listens(bench):
    bench.fill(("k", 10))
    bench.apply(SET, 11, "k")
    assert bench.events == []
    bench.shard.trace = True
    bench.apply(TAG, 12, "red", origin="b", now=NOW + 0.25, time_us=0)
    (event,) = bench.events
    assert event == InvalidationReceived(0, "tag", 12, "b", ("red",), applied=False, lag_ms=event.lag_ms)
    # The only comparison so far said that the server's 0 was our 100.
    assert event.lag_ms == pytest.approx(250.0)


def test_p8_the_delay_of_a_message_is_unknown_before_the_first_comparison(new_bench):
    bench = new_bench(start=False)
    bench.shard.trace = True
    bench.apply(SET, 12, "k")
    assert bench.of(InvalidationReceived)[0].lag_ms is None


@pytest.mark.parametrize("seq", [12, 10, 9], ids=["gap", "repeated", "step back"])
def test_p6_a_number_that_does_not_continue_the_stream_asks_for_a_resync(bench, seq):
    bench.fill(("k", 8), ("x", 8))
    assert not bench.apply(SET, seq, "k")
    assert bench.held() == {"x": 8}  # evicted all the same
    assert (bench.shard.position, bench.shard.synced) == (10, False)
    assert bench.shard.state is State.SUSPECT
    assert bench.of(MessageGap) == [MessageGap(0, 11, seq)]
    bench.fill(("y", 10))
    assert bench.held() == {"x": 8}


def test_p6_after_a_gap_messages_evict_and_mark_but_do_not_move_the_position(bench):
    bench.fill(("k", 8))
    token = bench.register("x")
    bench.apply(SET, 12, "other")
    assert bench.apply(SET, 13, "k", "x")  # sound: the resync is asked for already
    assert bench.held() == {}
    assert token.marks == {"x": 13}
    assert bench.shard.position == 10
    assert len(bench.of(MessageGap)) == 1
    bench.release(token)


def test_p8_what_cannot_be_understood_flushes(bench):
    bench.fill(("k", 10))
    generation = bench.shard.generation
    bench.distrust("not msgpack")
    assert bench.held() == {}
    assert bench.shard.tier.valid_until == -inf
    assert (bench.shard.state, bench.shard.synced) == (State.SUSPECT, False)
    assert bench.shard.generation > generation
    assert (bench.counters.flushes, bench.counters.errors) == (1, 1)
    assert bench.of(MessageDamaged) == [MessageDamaged(0, "not msgpack", 1)]
    assert (bench.shard.epoch, bench.shard.position) == (EPOCH, 10)


# --- P4: heartbeats and the horizon -----------------------------------------------------------------------------------


def test_p4_the_horizon_is_when_the_heartbeat_was_sent(bench):
    assert bench.prove(10, sent_at=103.0)
    assert (bench.shard.tier.horizon, bench.shard.tier.valid_until) == (103.0, 108.0)


def test_p4_the_horizon_never_moves_back(bench):
    bench.prove(10, sent_at=103.0)
    assert bench.prove(10, sent_at=102.0)
    assert bench.shard.tier.horizon == 103.0


@pytest.mark.parametrize(
    "clock",
    [
        {"seq": 11},
        {"seq": 9},
        {"seq": 10, "history": b"x"},
        {"seq": 10, "epoch": OTHER_EPOCH},
        {"seq": 0, "epoch": OTHER_EPOCH},
    ],
    ids=["ahead", "behind", "other nonce (A4)", "other epoch", "clock was missing"],
)
def test_p4_a1_the_horizon_moves_only_if_the_clock_equals_what_was_applied(bench, clock):
    seq = clock.pop("seq")
    assert not bench.prove(seq, sent_at=103.0, **clock)
    assert bench.shard.tier.horizon == NOW


def test_p4_an_equal_clock_proves_nothing_while_a_resync_is_due(bench):
    bench.doubt("cut")
    assert not bench.prove(10, sent_at=103.0)
    assert (bench.shard.tier.horizon, bench.shard.state) == (NOW, State.SUSPECT)


def test_p4_a_late_heartbeat_makes_suspect_and_its_answer_coherent(bench):
    bench.fill(("k", 10))
    token = bench.register("x")
    bench.suspect("late")
    assert bench.shard.state is State.SUSPECT
    assert bench.shard.tier.valid_until == NOW + MAX_STALENESS  # hits go on
    assert bench.prove(10, sent_at=102.0)
    assert bench.shard.state is State.COHERENT
    bench.absorb(token, ("x", 10))  # nothing was missed: no new generation
    assert bench.held() == {"k": 10, "x": 10}


def test_p4_an_answer_after_the_bound_makes_coherent_again(bench):
    bench.fill(("k", 10))
    lapsed(bench)
    assert bench.prove(10, sent_at=105.5)
    assert bench.shard.state is State.COHERENT
    assert bench.held() == {"k": 10}


def hit(tier, key, clock):
    """The hit path: horizon, then clock, then look-up, on one tier object."""
    valid_until = tier.valid_until
    now = clock()
    return tier.entries.get(key) if valid_until >= now else None


def test_p4_a12_a_flush_leaves_its_old_tier_with_a_horizon_that_no_proof_moves(bench):
    """A reader that took the tier before a gap must not find it blessed by a proof after the gap."""
    bench.fill(("k", 10))
    old = bench.shard.tier
    bench.resync(50, sent_at=104.0)
    bench.prove(50, sent_at=107.0)
    assert bench.shard.tier is not old
    assert (old.horizon, old.valid_until) == (NOW, NOW + MAX_STALENESS)
    assert hit(old, "k", lambda: 104.9).seq == 10  # within its own bound still
    assert hit(old, "k", lambda: 105.1) is None
    assert hit(bench.shard.tier, "k", lambda: 105.1) is None


@pytest.mark.parametrize("flush", [lost_in_a_read, lambda bench, _: bench.distrust("damaged")])
def test_p4_a12_every_flush_replaces_the_tier(bench, flush):
    bench.fill(("k", 10))
    old = bench.shard.tier
    flush(bench, OTHER_EPOCH)
    bench.resync(3, epoch=OTHER_EPOCH, sent_at=104.0)
    assert (old.horizon, list(old.entries)) == (NOW, ["k"])
    assert bench.shard.tier.horizon == 104.0


# --- P6: resync -------------------------------------------------------------------------------------------------------


def test_p6_the_first_resync_makes_coherent(new_bench):
    bench = new_bench(start=False)
    bench.resync(10, server="A", sent_at=99.0, now=101.0)
    shard = bench.shard
    assert (shard.state, shard.synced, shard.server) == (State.COHERENT, True, "A")
    assert (shard.epoch, shard.position, shard.nonce) == (EPOCH, 10, nonce(10))
    assert (shard.tier.horizon, shard.tier.valid_until) == (99.0, 104.0)
    assert bench.of(Resynced) == [Resynced(0, "first connection", "first", 10, 0, 0)]
    assert bench.of(StateChanged) == [StateChanged(0, "connecting", "coherent", "resync: first")]
    assert (bench.counters.resyncs, bench.counters.flushes) == (1, 0)


def test_p6_nothing_missed_keeps_the_tier_warm(bench):
    bench.fill(("a", 8), ("b", 10))
    bench.doubt("cut")
    bench.resync(10, sent_at=104.0)
    assert bench.held() == {"a": 8, "b": 10}
    assert bench.shard.tier.horizon == 104.0
    assert bench.shard.state is State.COHERENT
    assert bench.of(Resynced) == [Resynced(0, "cut", "unbroken", 10, 0, 0)]
    assert (bench.counters.resyncs, bench.counters.flushes, bench.counters.replays) == (2, 0, 0)


def log(first, *names, history=b"n"):
    """Log entries from position ``first`` on; each concerns one of the names."""
    return tuple(message(SET, first + at, name, history=history) for at, name in enumerate(names))


def test_p6_missing_far_more_than_memory_could_list_is_a_flush_at_once(bench):
    bench.fill(("a", 8))
    bench.doubt("cut")
    bench.resync(10**15, entries=log(10, "a", "b", "x"), sent_at=104.0)
    assert bench.held() == {}
    assert bench.counters.flushes == 1


def test_p6_i4_just_what_was_missed_is_replayed(bench):
    bench.fill(("a", 8), ("b", 9), ("c", 10))
    bench.doubt("cut")
    bench.resync(12, entries=log(10, "a", "b", "x"), sent_at=104.0)
    assert bench.held() == {"a": 8, "c": 10}  # 10 was applied before the cut; 11 evicts b; 12 nothing
    assert (bench.shard.position, bench.shard.nonce) == (12, nonce(12))
    assert bench.of(Resynced) == [Resynced(0, "cut", "replayed", 12, 2, 0)]
    counters = bench.counters
    assert (counters.replays, counters.received, counters.applied, counters.flushes) == (2, 2, 1, 0)
    assert [(entry.seq, applied) for _, entry, _, applied in list(bench.shard.recent)[-2:]] == [(11, True), (12, False)]
    assert bench.removed() == {"invalidated": 1}


def test_p6_floors_are_replayed_as_well(bench):
    bench.fill(("red", 9), tags=("red",))
    bench.fill(("plain", 9))
    bench.resync(11, entries=(*log(10, "x"), message(TAG, 11, "red")))
    assert bench.held() == {"plain": 9}
    bench.resync(12, entries=(message(TAG, 11, "red"), message(CLEAR, 12)))
    assert bench.held() == {}


def test_p6_a5_entries_above_the_proven_position_go(bench):
    """They ran ahead of the stream: the nonce at the position says nothing about the history that they are from."""
    bench.fill(("k", 10))
    bench.fill(("ahead", 12), reply=write_reply(12))
    bench.doubt("cut")
    bench.resync(10)
    assert bench.held() == {"k": 10}
    assert bench.removed() == {"unproven": 1}
    assert bench.of(Resynced)[-1].dropped == 1


def test_p6_a5_a_last_known_value_above_the_proven_position_is_older_than_whatever_is_heard(bench):
    bench.fill(("ahead", 12), reply=write_reply(12))
    bench.shard.keep("ahead", 100.0, NOW)
    bench.fill(("k", 10))
    bench.shard.keep("k", 100.0, NOW)
    bench.doubt("cut")
    bench.resync(10)
    assert bench.shard.last_known("ahead", NOW) is not None, "it is served as stale only"
    assert bench.shard.last_known("ahead", NOW, Version(EPOCH, 1)) is None
    assert bench.shard.last_known("k", NOW, Version(EPOCH, 10)) is not None, "proven"
    assert bench.apply(SET, 11, "ahead")
    assert bench.shard.last_known("ahead", NOW) is None


def test_p6_a5_entries_above_the_proven_position_go_before_a_replay(bench):
    bench.fill(("k", 10))
    bench.fill(("ahead", 11), reply=write_reply(11))
    bench.doubt("cut")
    # The new history's 11 and 12 are others, and none of them concerns the key.
    bench.resync(12, entries=(*log(10, "x"), *log(11, "y", "z", history=b"x")), history=b"x")
    assert bench.held() == {"k": 10}


@pytest.mark.parametrize(
    ("seq", "options"),
    [
        (10, {"history": b"x"}),
        (9, {}),
        (0, {"epoch": OTHER_EPOCH}),
        (12, {"epoch": OTHER_EPOCH, "entries": log(10, "x", "y", "z")}),
        (12, {"entries": ()}),
        (12, {"entries": log(11, "y", "z")}),
        (12, {"entries": log(9, "w", "x", "y", "z")}),
        (12, {"entries": log(10, "x", "y")}),
        (12, {"entries": log(10, "x", "y", "z", "w")}),
        (12, {"entries": (*log(10, "x"), *log(12, "z"))}),
        (12, {"entries": (*log(10, "x"), *log(12, "z"), *log(11, "y"))}),
        (12, {"entries": (*log(10, "x", history=b"x"), *log(11, "y", "z"))}),
        (12, {"entries": log(10, "x", "y", "z"), "history": b"x"}),
        (12, {"entries": (*log(10, "x"), message(SET, 11, "y", epoch=OTHER_EPOCH), *log(12, "z"))}),
        (12, {"entries": (*log(10, "x"), b"\xff damaged", *log(12, "z"))}),
    ],
    ids=[
        "equal number, other nonce (A4)",
        "lower number",
        "other epoch",
        "other epoch, fitting log",
        "no log, or over the replay limit",
        "trimmed, own position gone",
        "begins before the position",
        "ends too early",
        "ends too late",
        "hole",
        "order",
        "other nonce at my position (A4)",
        "other nonce at the end",
        "begun again in between",
        "damaged entry",
    ],
)
def test_p6_a30_what_is_not_proven_flushes(bench, seq, options):
    bench.fill(("k", 5))
    bench.doubt("cut")
    bench.resync(seq, sent_at=99.0, **options)
    assert bench.held() == {}
    assert bench.shard.tier.horizon == 99.0  # a tier without entries is as old as its proof
    assert (bench.shard.epoch, bench.shard.position) == (options.get("epoch", EPOCH), seq)
    assert bench.shard.state is State.COHERENT
    assert bench.of(Resynced) == [Resynced(0, "cut", "flushed", seq, 0, 1)]
    assert (bench.counters.flushes, bench.counters.replays, bench.counters.received) == (1, 0, 0)
    assert bench.removed() == {"flushed": 1}


@pytest.mark.parametrize("complete", [{"seq": 10}, {"seq": 11, "entries": log(10, "x", "y")}, {"seq": 50}])
def test_p6_a2_a_token_registered_before_the_resync_is_complete_is_void(bench, complete):
    connected = bench.register("k")
    bench.doubt("cut")
    disconnected = bench.register(
        "k"
    )  # after the break was noticed: a generation bumped there would be the current one
    bench.resync(**complete)
    bench.absorb(disconnected, ("k", 9))
    bench.absorb(connected, ("k", 9))
    assert bench.held() == {}
    bench.fill(("k", 9))
    assert bench.held() == {"k": 9}


def test_p6_messages_before_the_resyncs_reply_evict_but_do_not_move_the_position(bench):
    """A new connection: subscribed, the clock is asked for, messages come first."""
    bench.fill(("k", 8), ("x", 8))
    bench.doubt("cut")
    token = bench.register("y")
    assert bench.apply(SET, 12, "k", "y")
    assert bench.held() == {"x": 8}
    assert token.marks == {"y": 12}
    assert (bench.shard.position, bench.shard.nonce) == (10, nonce(10))
    bench.resync(12, entries=log(10, "a", "x", "k"))
    assert bench.held() == {}
    bench.release(token)


def test_p6_a_resync_of_another_epoch_makes_the_old_one_a_past_one(bench):
    bench.resync(10, epoch=OTHER_EPOCH)
    assert bench.apply(SET, 11, "k", epoch=EPOCH)
    assert bench.shard.epoch == OTHER_EPOCH


def test_p6_a_resync_after_a_lost_history_is_no_second_flush(bench):
    bench.fill(("k", 10))
    lost_in_a_message(bench, OTHER_EPOCH)
    bench.resync(1, epoch=OTHER_EPOCH)
    assert bench.counters.flushes == 1
    assert bench.of(Resynced) == [Resynced(0, "another epoch in a message", "first", 1, 0, 0)]


def test_a_resync_compares_the_clocks(new_bench):
    bench = new_bench(start=False)
    bench.resync(10, sent_at=104.0, now=106.0, time_us=205_000_000)
    assert bench.shard.lag.offset == pytest.approx(100.0)
    bench.resync(10, sent_at=107.0, now=110.0, time_us=0)  # a longer round trip says less
    assert bench.shard.lag.offset == pytest.approx(100.0)


def test_another_servers_clock_is_compared_anew(bench):
    bench.resync(10, server="B", sent_at=104.0, now=106.0, time_us=205_000_000)
    assert bench.shard.lag.offset == pytest.approx(100.0)


# --- doubts of operations ---------------------------------------------------------------------------------------------


def test_a8_an_ambiguous_write_distrusts_its_keys_and_no_other(bench):
    bench.fill(("k", 10), ("x", 10), ("y", 10))
    slow, other = bench.register("k"), bench.register("z")
    bench.distrust_keys(("k", "x", "unknown"))
    bench.absorb(slow, ("k", 9_999))
    bench.absorb(other, ("z", 10))
    assert bench.held() == {"y": 10, "z": 10}


def test_a8_an_ambiguous_floor_distrusts_everything_but_the_horizon(bench):
    bench.fill(("k", 10))
    bench.distrust_all()
    assert bench.held() == {}
    assert bench.shard.tier.valid_until == NOW + MAX_STALENESS
    assert bench.shard.state is State.COHERENT
    assert bench.removed() == {"invalidated": 1}
    bench.fill(("k", 10))
    assert bench.held() == {"k": 10}


def test_clear_local_keeps_horizon_generation_and_knowledge(bench):
    bench.fill(("a", 9), ("b", 10))
    token, marked = bench.register("c"), bench.register("d")
    bench.apply(SET, 11, "d")
    generation = bench.shard.generation
    assert bench.clear_local() == 2
    assert bench.shard.tier.valid_until == NOW + MAX_STALENESS
    assert (bench.shard.generation, bench.shard.state) == (generation, State.COHERENT)
    assert bench.removed() == {"cleared": 2}
    bench.absorb(token, ("c", 10))
    bench.absorb(marked, ("d", 10))
    assert bench.held() == {"c": 10}
    assert bench.clear_local() == 1


def test_an_expired_entry_is_removed_by_its_reader(bench):
    token = bench.register("k")
    entry = make_entry("v", seq=9, size=1, expires_at=101.0)
    bench.shard.absorb(token, read_reply(), [("k", 9, entry)], now=NOW)
    bench.remove_expired("k", 100.9)
    assert bench.held() == {"k": 9}  # replaced by a fresh one meanwhile: it stays
    bench.remove_expired("k", 101.0)
    bench.remove_expired("k", 101.0)
    assert bench.held() == {}
    assert bench.removed() == {"expired": 1}


def test_expired_entries_are_swept_a_few_at_a_time(bench):
    assert SWEEP_ENTRIES >= 100
    token = bench.register("a", "b")
    entries = [
        (key, 9, make_entry("v", seq=9, size=1, expires_at=expires)) for key, expires in (("a", 101.0), ("b", 102.0))
    ]
    bench.shard.absorb(token, read_reply(), entries, now=NOW)
    bench.sweep(101.0)
    assert bench.held() == {"b": 9}
    assert bench.removed() == {"expired": 1}


# --- P5: states -------------------------------------------------------------------------------------------------------


def test_p5_the_bound_lapses_once(bench):
    bench.fill(("k", 10))
    bench.tick(NOW + MAX_STALENESS)
    assert bench.shard.state is State.COHERENT
    for _ in range(2):
        bench.tick(NOW + MAX_STALENESS + 0.001)
    assert bench.shard.state is State.DISCONNECTED
    cause = "no proof of freshness within max_staleness"
    assert bench.of(StateChanged) == [StateChanged(0, "coherent", "disconnected", cause)]
    assert bench.held() == {"k": 10}  # for serve_stale, and for a proof that comes after all


def test_p5_an_instance_that_never_connected_has_the_bound_from_its_first_tick(new_bench):
    bench = new_bench(start=False)
    bench.tick(NOW + MAX_STALENESS)
    assert bench.shard.state is State.CONNECTING
    bench.tick(NOW + MAX_STALENESS + 0.001)
    assert bench.shard.state is State.DISCONNECTED


@pytest.mark.parametrize("flush", [lambda bench: lost_in_a_read(bench, OTHER_EPOCH), lambda bench: bench.distrust("?")])
def test_p5_a_flush_is_no_lapse(bench, flush):
    """The last proof of freshness is as old as it was, though nothing is left that it proves."""
    bench.prove(10, sent_at=200.0)
    flush(bench)
    state = bench.shard.state
    assert state is not State.DISCONNECTED
    bench.tick(200.1)
    assert bench.shard.state is bench.shard.state_at(200.1) is state
    bench.tick(200.0 + MAX_STALENESS + 0.001)
    assert bench.shard.state is State.DISCONNECTED


def test_p5_p13_the_state_is_right_though_no_thread_was_running(bench):
    assert bench.state_at(NOW + MAX_STALENESS) is State.COHERENT
    assert bench.state_at(NOW + MAX_STALENESS + 0.001) is State.DISCONNECTED
    bench.suspect("late")
    assert bench.state_at(NOW + MAX_STALENESS) is State.SUSPECT
    assert bench.state_at(NOW + MAX_STALENESS + 0.001) is State.DISCONNECTED


def test_p5_a_state_without_a_horizon_is_what_it_is(new_bench):
    assert new_bench(start=False).state_at(NOW) is State.CONNECTING


def test_p5_a_doubt_is_an_event_once(bench):
    bench.doubt("cut")
    bench.doubt("cut again")
    assert bench.of(StateChanged) == [StateChanged(0, "coherent", "suspect", "cut")]
    assert not bench.shard.synced


def test_p5_lateness_alone_asks_for_no_resync(bench):
    bench.suspect("late")
    assert bench.shard.synced


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("trigger", Trigger)
def test_p5_states_change_as_the_table_says(bench, state, trigger):
    bench.shard.state = state
    match trigger:
        case Trigger.PROVEN:
            bench.prove(10, sent_at=NOW)
        case Trigger.DOUBTED:
            bench.doubt("cut")
        case Trigger.FORGOTTEN:
            lost_in_a_read(bench, OTHER_EPOCH)
        case Trigger.LAPSED:
            bench.tick(NOW + 2 * MAX_STALENESS)
    assert bench.shard.state is TRANSITIONS[state][trigger]
    changes = [(event.old, event.new) for event in bench.of(StateChanged)]
    assert changes == ([] if bench.shard.state is state else [(state.value, bench.shard.state.value)])


# --- the lock ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda shard, _: shard.register(["k"]),
        lambda shard, token: shard.release(token),
        lambda shard, token: shard.absorb(token, read_reply(), [("k", 9, make_entry("v", seq=9, size=1))], now=NOW),
        lambda shard, _: shard.learn_floor(write_reply(11), CLEAR, ()),
        lambda shard, _: shard.distrust_keys(["k"]),
        lambda shard, _: shard.distrust_all(),
        lambda shard, _: shard.remove_expired("k", NOW),
        lambda shard, _: shard.clear_local(),
        lambda shard, _: shard.apply(message(SET, 11, "k"), now=NOW),
        lambda shard, _: shard.apply(message(SET, 1, "k", epoch=OTHER_EPOCH), now=NOW),
        lambda shard, _: shard.prove(sync_reply(10), sent_at=NOW),
        lambda shard, _: shard.resync(sync_reply(10), server="A", sent_at=NOW, now=NOW),
        lambda shard, _: shard.doubt("cut"),
        lambda shard, _: shard.suspect("late"),
        lambda shard, _: shard.distrust("damaged"),
        lambda shard, _: shard.sweep(NOW),
        lambda shard, _: shard.tick(NOW),
    ],
)
def test_r4_every_change_is_one_critical_section(bench, call):
    """Taken once, so that nothing comes between the parts of a call: a resync's replay and its new generation (A2)."""
    token = bench.register("k")
    before = bench.lock.taken
    call(bench.shard, token)
    assert bench.lock.taken == before + 1


def test_a_shards_state_may_be_asked_without_the_lock(bench):
    before = bench.lock.taken
    bench.state_at(NOW)
    assert bench.lock.taken == before


def test_the_public_attributes_of_a_new_shard():
    tier = SimpleNamespace(sibling=lambda: "kept")
    shard = Shard(3, tier, max_staleness=1.0, lock=Lock(), counters=Counters(), emit=lambda _: None)
    assert shard.kept == "kept"
    assert (shard.index, shard.state, shard.generation, shard.synced) == (3, State.CONNECTING, 0, False)
    assert (shard.epoch, shard.position, shard.nonce, shard.server) == (None, None, b"", None)
