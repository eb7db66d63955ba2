"""Acknowledged writes (P12): who must confirm, when receipts are proof, and how long is waited without them.

A test drives the operation by hand: it is the front, Redis and the clock. The bound is 5 seconds, 5.55 with the margin.
"""

import random
from contextlib import nullcontext
from functools import partial
from math import inf

import pytest

from coherent_cache.config import Settings
from coherent_cache.core import operations
from coherent_cache.core.acknowledging import CLOCK_MARGIN, SILENT_BOUNDS, acknowledge
from coherent_cache.core.instance import Instance
from coherent_cache.core.requests import (
    DeleteRequest,
    FloorRequest,
    Member,
    MembersReply,
    MembersRequest,
    StoreRequest,
    WaitRequest,
    Woken,
    WriteReply,
)
from coherent_cache.errors import CacheUnavailable, InvalidKey
from coherent_cache.serializers import make_codec
from coherent_cache.versions import EPOCH_BYTES, NONCE_BYTES, Version
from coherent_cache.wire import Kind, SyncReply

EPOCH, OTHER_EPOCH = b"e" * EPOCH_BYTES, b"o" * EPOCH_BYTES
BOUND = 5.0
WITH_MARGIN = BOUND * (1 + CLOCK_MARGIN)
NOW = 1000.0
SERVER_MS = 9_000_000
ROUNDING = 1e-6
STORED = {"ttl": None, "tags": (), "condition": None}


class Front:
    """One instance, synchronised long ago, and one acknowledged write of it."""

    def __init__(self, *, shards=1, known_since=NOW - 100.0, **options):
        self.now = NOW
        self.instance = Instance(
            Settings(namespace="test", shards=shards, max_staleness=BOUND, **options),
            make_codec("msgpack"),
            instance_id="me",
            lock=nullcontext,
            rng=random.Random(0),
            emit=lambda _: None,
        )
        self.nonces = []
        self.result = None
        if self.instance.settings.local_enabled:
            for shard in self.instance.shards:
                sync = SyncReply(b"", "", EPOCH, 1, b"n" * NONCE_BYTES, 0, ())
                shard.tick(NOW)
                shard.resync(sync, server="A", sent_at=NOW, now=NOW)
                shard.note_registry(entered=True, now=NOW)
                shard.known_since = known_since

    @property
    def shard(self):
        return self.instance.shards[0]

    def write(self, write=operations.store_one, *args, wait=60.0, **options):
        args = args or ("k", 1)
        if write is operations.store_one:
            options = STORED | options
        self.operation = acknowledge(self.instance, partial(write, self.instance, *args, **options), wait)
        self._take(next(self.operation))
        return self

    def _take(self, requests):
        self.requests = requests
        if isinstance(requests[0], StoreRequest | DeleteRequest | FloorRequest):
            self.nonces.append(requests[0].entropy[:NONCE_BYTES])

    def send(self, *replies):
        try:
            self._take(self.operation.send(replies))
        except StopIteration as stop:
            self.requests, self.result = (), stop.value
        return self

    def execute(self, *, seq=2, epoch=EPOCH, server="A", existed=(), after=0.0):
        """Let Redis execute the write, and its reply come some seconds later."""
        sent_at, self.now = self.now, self.now + after
        self.send(WriteReply(epoch, seq, True, existed, 0, False, server, sent_at))
        return self

    def tell_time(self):
        assert self.requests == (WaitRequest(None, 0.0),)
        return self.send(Woken(False, self.now))

    def list(self, *members, bound=BOUND, seen=0.0, age=1000.0, epoch=EPOCH, server="A"):
        """Tell who the members are, the instance itself among them; all were seen some seconds ago."""
        self.tell_time()
        assert {type(request) for request in self.requests} == {MembersRequest}
        listed = tuple(
            Member(name, round(bound * 1000), SERVER_MS - round(seen * 1000))
            for name in (self.instance.member, *members)
        )
        reply = MembersReply(epoch, SERVER_MS - round(age * 1000), SERVER_MS, listed, server)
        self.send(*[reply] * len(self.requests))
        return self.tell_time()

    def receive(self, member, shard=0):
        self.instance.shards[shard].receive(self.nonces[shard], member)
        return self

    def wake(self, seconds=0.0):
        """Let the wait end, because somebody woke it or its time is over."""
        (request,) = self.requests
        self.now += seconds
        return self.send(Woken(request.waiter.woken, self.now))

    def waits(self):
        """Return until when it waits, in seconds from the start."""
        (request,) = self.requests
        return request.until - NOW


@pytest.fixture
def front():
    return Front()


def told(result):
    return result.by, result.confirmed, result.members


# --- receipts ---


def test_all_members_confirm(front):
    front.write().execute().list("b", "c")
    assert front.waits() == pytest.approx(WITH_MARGIN)
    front.receive("b")
    assert not front.requests[0].waiter.woken
    front.receive("c").wake(0.25)
    assert told(front.result) == ("answers", 2, 2)
    assert front.result.acknowledged
    assert front.result.version == Version(EPOCH, 2)
    assert front.result.existed is None
    assert front.result.seconds == pytest.approx(0.25)


def test_receipts_may_come_before_the_list_and_before_the_reply(front):
    front.write().receive("b").execute().receive("c").list("b", "c")
    assert told(front.result) == ("answers", 2, 2)


def test_with_no_other_member_there_is_nothing_to_wait_for(front):
    front.write().execute().list()
    assert told(front.result) == ("answers", 0, 0)


def test_receipts_for_another_write_do_not_count(front):
    front.write().execute().list("b")
    front.shard.receive(b"x" * NONCE_BYTES, "b")
    assert not front.requests[0].waiter.woken


def test_each_write_has_a_nonce_of_its_own(front):
    for _ in range(3):
        front.write().execute().list()
    assert len(set(front.nonces)) == 3
    assert all(len(nonce) == NONCE_BYTES for nonce in front.nonces)


def test_who_is_not_listed_confirms_without_being_counted(front):
    front.write().execute().receive("x").receive("b").list("b")
    assert told(front.result) == ("answers", 1, 1)


def test_a_member_that_was_silent_for_long_need_not_confirm():
    seconds = SILENT_BOUNDS * WITH_MARGIN
    assert told(Front().write().execute().list("b", seen=seconds + 0.01).result) == ("answers", 0, 0)
    assert Front().write().execute().list("b", seen=seconds - 0.01).result is None


# --- the bound ---


def test_who_does_not_confirm_has_ceased_to_serve_when_the_bound_is_over(front):
    front.write().execute().list("b", "c").receive("b").wake(WITH_MARGIN)
    assert told(front.result) == ("bound", 1, 2)
    assert front.result.acknowledged


def test_the_bound_runs_from_the_reply_not_from_the_sending(front):
    front.write().execute(after=2.0).list("b")
    assert front.waits() == pytest.approx(2.0 + WITH_MARGIN)
    front.wake(WITH_MARGIN - 0.01)
    assert front.result is None


def test_the_bound_is_the_longest_of_all_members(front):
    front.write().execute().list("b", bound=20.0)
    assert front.waits() == pytest.approx(20.0 * (1 + CLOCK_MARGIN))


def test_a_writer_that_serves_stale_values_for_long_expects_the_same_of_others():
    front = Front(on_disconnect="serve_stale", stale_limit=30.0).write().execute().list("b")
    assert front.waits() == pytest.approx(30.0 * (1 + CLOCK_MARGIN))


def test_the_caller_may_want_to_wait_no_longer(front):
    front.write(wait=1.5).execute(after=1.0).list("b")
    assert front.waits() == pytest.approx(2.5)
    front.wake(1.5)
    assert told(front.result) == ("timeout", 0, 1)
    assert not front.result.acknowledged


def test_a_wait_that_ends_too_early_goes_on(front):
    front.write().execute().list("b").wake(1.0)
    assert front.waits() == pytest.approx(WITH_MARGIN)


# --- when receipts are no proof ---


def test_w5_an_epoch_that_is_not_known_for_long_may_lack_members():
    front = Front(known_since=NOW - 2.0).write().execute().list()
    assert front.waits() == pytest.approx(WITH_MARGIN - 2.0)
    front.wake(WITH_MARGIN - 2.0 + ROUNDING)
    assert told(front.result) == ("answers", 0, 0)


def test_w5_receipts_are_waited_for_however_long_the_epoch_is_known():
    front = Front(known_since=NOW - 2.0).write().execute().list("b")
    assert front.waits() == pytest.approx(WITH_MARGIN)
    front.receive("b").wake()
    assert front.waits() == pytest.approx(WITH_MARGIN - 2.0)


def test_b5_a_registry_that_was_begun_just_now_may_lack_members(front):
    front.write().execute().list(age=1.0)
    assert front.waits() == pytest.approx(WITH_MARGIN - 1.0)
    front.wake(WITH_MARGIN - 1.0 + ROUNDING)
    assert told(front.result) == ("answers", 0, 0)


@pytest.mark.parametrize("listed", [{"server": "B"}, {"epoch": OTHER_EPOCH}, {"epoch": b""}])
def test_the_members_of_another_server_or_history_say_nothing(front, listed):
    front.write().execute().receive("b").list("b", **listed)
    assert front.waits() == pytest.approx(WITH_MARGIN)
    front.wake(WITH_MARGIN)
    assert told(front.result) == ("bound", 0, 0)


@pytest.mark.parametrize("executed", [{"server": "B"}, {"epoch": OTHER_EPOCH}])
def test_p16_a_write_elsewhere_than_where_the_stream_comes_from_waits_for_the_bound(front, executed):
    front.write().execute(**executed).receive("b").list("b", **executed)
    front.wake(WITH_MARGIN)
    assert told(front.result) == ("bound", 1, 1)


def test_a_history_that_ends_while_the_write_waits_proves_nothing(front):
    front.write().execute().list("b")
    front.shard.resync(SyncReply(b"", "", OTHER_EPOCH, 0, b"n" * NONCE_BYTES, 0, ()), server="A", sent_at=NOW, now=NOW)
    front.receive("b").wake()
    assert front.waits() == pytest.approx(WITH_MARGIN)


def test_a_writer_that_is_not_fresh_itself_knows_of_nobody(front):
    front.now += BOUND + 1
    front.write().execute().list()
    assert front.waits() == pytest.approx(BOUND + 1 + WITH_MARGIN)


def test_without_an_answer_about_the_members_the_bound_is_waited_for(front):
    front.write().execute().tell_time()
    front._take(front.operation.throw(CacheUnavailable("away")))
    front.tell_time().wake(WITH_MARGIN)
    assert told(front.result) == ("bound", 0, 0)


def test_without_a_local_tier_the_bound_is_waited_for():
    front = Front(local_enabled=False).write().execute().list("b").wake(WITH_MARGIN)
    assert told(front.result) == ("bound", 0, 1)


# --- the kinds of writes ---


@pytest.mark.parametrize("existed", [True, False])
def test_a_deletion_tells_whether_the_value_was_there(front, existed):
    front.write(operations.delete, ("k",)).execute(existed=[existed]).list()
    assert front.result.existed is existed


def test_a_clear_of_several_shards_waits_for_all_of_them():
    front = Front(shards=2).write(operations.raise_floor, Kind.CLEAR)
    front.execute().execute(seq=7).list("b", "c")
    front.receive("b").receive("c").wake()
    assert front.result is None
    front.receive("b", shard=1).wake(WITH_MARGIN)
    assert told(front.result) == ("bound", 1, 2)
    assert front.result.version == Version(EPOCH, 7)


@pytest.mark.parametrize(
    "write",
    [
        (operations.store_one, "k", 1),
        (operations.delete, ("k",)),
        (operations.raise_floor, Kind.CLEAR),
        (operations.raise_floor, Kind.TAG, ("t",)),
    ],
)
def test_every_kind_of_write_asks_for_receipts_only_if_somebody_waits(front, write):
    front.write(*write)
    assert len(front.requests[0].entropy) == EPOCH_BYTES
    name, *args = write
    options = STORED if name is operations.store_one else {}
    assert next(name(front.instance, *args, **options))[0].entropy == b""


# --- failures ---


def test_a_write_that_fails_raises_as_without_waiting(front):
    front.write()
    with pytest.raises(CacheUnavailable, match="refused"):
        front.operation.throw(CacheUnavailable("refused"))
    assert not front.shard._collectors


def test_what_is_wrong_is_told_before_anything_is_sent(front):
    with pytest.raises(InvalidKey):
        front.write(operations.store_one, "", 1)
    assert not front.shard._collectors


@pytest.mark.parametrize("stage", range(4))
def test_nothing_is_left_behind_wherever_it_is_cancelled(front, stage):
    steps = [front.write, front.execute, lambda: front.list("b"), lambda: front.receive("b")]
    for step in steps[: stage + 1]:
        step()
    front.operation.close()
    assert not front.shard._collectors


def test_nothing_is_left_behind_by_a_write_that_was_acknowledged(front):
    front.write().execute().list()
    assert not front.shard._collectors
    front.receive("late")


# --- what a shard knows of the registry ---


def test_the_registry_is_known_from_the_first_entry_on():
    shard = Front(known_since=inf).shard
    shard.note_registry(entered=True, now=NOW + 1)
    shard.note_registry(entered=True, now=NOW + 2)
    assert shard.registered_since(EPOCH, "A", NOW + 2) == NOW + 1


def test_an_entry_that_could_not_be_made_begins_it_anew():
    shard = Front(known_since=inf).shard
    shard.note_registry(entered=True, now=NOW + 1)
    shard.note_registry(entered=False, now=NOW + 2)
    assert shard.registered_since(EPOCH, "A", NOW + 2) == inf
    shard.note_registry(entered=True, now=NOW + 3)
    assert shard.registered_since(EPOCH, "A", NOW + 3) == NOW + 3


def test_a_time_without_news_begins_it_anew():
    shard = Front(known_since=inf).shard
    for at in (1, 1 + BOUND, 2 + 2.001 * BOUND):
        shard.note_registry(entered=True, now=NOW + at)
    shard.lapses_at = inf
    assert shard.registered_since(EPOCH, "A", NOW) == NOW + 2 + 2.001 * BOUND


@pytest.mark.parametrize(("epoch", "server"), [(OTHER_EPOCH, "A"), (EPOCH, "B")])
def test_another_history_or_server_begins_it_anew(epoch, server):
    shard = Front().shard
    shard.resync(SyncReply(b"", "", epoch, 1, b"n" * NONCE_BYTES, 0, ()), server=server, sent_at=NOW, now=NOW)
    assert shard.registered_since(epoch, server, NOW) == inf


def test_a_resync_with_the_same_server_and_history_does_not():
    shard = Front().shard
    shard.resync(SyncReply(b"", "", EPOCH, 1, b"n" * NONCE_BYTES, 0, ()), server="A", sent_at=NOW, now=NOW)
    assert shard.registered_since(EPOCH, "A", NOW) == NOW - 100


def test_an_instance_that_leaves_holds_nothing_and_lets_nothing_in():
    front = Front()
    token = front.shard.register(["k"])
    reply = WriteReply(EPOCH, 5, True, (), 0, False, "A", NOW)
    facts = front.instance.facts("k")
    entry = front.instance.make_entry(facts, 1, b"\1", 5, (), inf)
    front.shard.absorb(front.shard.register(["j"]), reply, [("j", 5, entry)], now=NOW)
    assert len(front.shard.tier) == 1
    front.shard.leave()
    front.shard.absorb(token, reply, [("k", 5, entry)], now=NOW)
    assert len(front.shard.tier) == 0
    assert front.shard.tier.valid_until < NOW
