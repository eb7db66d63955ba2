"""One subscriber connection: which command when, what each answer means, and when the connection must go.

Time starts at 1000 and moves only here. Heartbeats come every second; a question is late after half of 2.5 seconds and
ends the connection after 2.5; the bound is 5 seconds.
"""

from math import inf

import pytest

from coherent_cache.core.entries import make_entry
from coherent_cache.core.questions import Ask, Question, decode_report, encode_question
from coherent_cache.core.reporting import ProcessFacts, Reporter
from coherent_cache.core.session import (
    SUSPECT_AT,
    WRITABLE_STATUSES,
    Receipt,
    Report,
    Response,
    Session,
    Subscribe,
    Sync,
)
from coherent_cache.core.shard import UNKNOWN_FORMAT_SECONDS
from coherent_cache.core.states import State
from coherent_cache.events import MessageDamaged, MessageGap, Resynced, StateChanged, UnknownFormatSeen
from coherent_cache.wire import Kind, SyncReply, encode_message, encode_receipt, encode_sync_reply
from tests.unit.core.model import (
    ABSENT,
    EPOCH,
    HEARTBEAT,
    MAX_STALENESS,
    OTHER_EPOCH,
    PATIENCE,
    message,
    nonce,
)

NOW = 1000.0


class Talk:
    """A session of one member, its server played by the test."""

    def __init__(self, world, *, replay_limit=100, reporter=False):
        (self.member,) = world
        self.shard = self.member.shard
        self.clock = self.member.clock
        self.session = Session(
            self.member.instance.shards,
            server="A",
            origin="a",
            heartbeat=HEARTBEAT,
            patience=PATIENCE,
            replay_limit=replay_limit,
            now=NOW,
            reporter=Reporter(self.member.instance, ProcessFacts("1", "host", 1, 0.0, 0.0)) if reporter else None,
        )

    def __getattr__(self, name):
        return getattr(self.session, name)

    def asked(self):
        """Take the one command that is to be sent."""
        (command,) = self.session.outgoing
        self.session.outgoing.clear()
        return command

    def reply(self, seq, *, to, epoch=EPOCH, history=b"n", status="", entries=(), now=None, time_us=0, shard=0):
        now = self.clock.now if now is None else now
        log = tuple(encode_message(entry) for entry in entries)
        data = SyncReply(to.token, status, epoch, seq, nonce(seq, history), time_us, log)
        self.session.answer(shard, encode_sync_reply(data), now)

    def start(self, seq=10):
        """Come to the point where the first resync is answered."""
        self.asked()
        self.session.confirmed(0, NOW)
        self.reply(seq, to=self.asked())
        return self

    def say(self, kind, seq, *names, shard=0, **options):
        self.session.message(shard, encode_message(message(kind, seq, *names, **options)), self.clock.now)

    def tick(self, now):
        self.clock.now = now
        self.session.tick(now)


@pytest.fixture
def talk(new_world):
    return Talk(new_world(members="a", connect=False))


@pytest.fixture
def started(talk):
    return talk.start()


# --- beginning --------------------------------------------------------------------------------------------------------


def test_p3_it_subscribes_first(talk):
    assert talk.asked() == Subscribe((0,))
    assert not talk.established


def test_p6_a17_the_clock_is_asked_only_after_every_subscription_is_confirmed(new_world):
    world = new_world(members="a", shards=3, connect=False)
    talk = Talk(world)
    assert talk.asked() == Subscribe((0, 1, 2))
    talk.confirmed(1, NOW)
    talk.confirmed(0, NOW)
    talk.tick(NOW + 1)  # not even if a shard is unsynchronised
    talk.resynchronise(0, NOW + 1)
    assert not talk.outgoing
    talk.confirmed(2, NOW + 1)
    assert [(type(command), command.shard, command.seq) for command in talk.outgoing] == [
        (Sync, 0, None),
        (Sync, 1, None),
        (Sync, 2, None),
    ]
    assert len({command.token for command in talk.outgoing}) == 3


def test_p6_the_first_answer_makes_the_shard_coherent(talk):
    talk.asked()
    talk.confirmed(0, NOW + 0.5)
    question = talk.asked()
    assert (question.shard, question.seq) == (0, None)
    talk.reply(10, to=question, now=NOW + 0.7)
    assert talk.shard.state is State.COHERENT
    assert (talk.shard.position, talk.shard.server) == (10, "A")
    assert talk.shard.tier.horizon == NOW + 0.5  # when the question was made, not when the answer came
    assert talk.established
    assert talk.next_tick() == NOW + 0.5 + HEARTBEAT


def test_a_session_is_established_when_every_shard_is(new_world):
    talk = Talk(new_world(members="a", shards=2, connect=False))
    talk.asked()
    talk.confirmed(0, NOW)
    talk.confirmed(1, NOW)
    first, second = talk.outgoing
    talk.reply(10, to=first, shard=0)
    assert not talk.established
    talk.reply(10, to=second, shard=1)
    assert talk.established


def test_p6_it_tells_whether_a_replay_is_on_its_way(talk):
    talk.asked()
    assert not talk.replaying
    talk.confirmed(0, NOW)
    assert talk.replaying
    talk.reply(10, to=talk.asked())
    assert not talk.replaying
    talk.tick(NOW + HEARTBEAT)
    assert talk.asked().seq is None
    assert not talk.replaying  # a heartbeat replays nothing
    talk.say(Kind.SET, 12, "a")
    assert talk.replaying


def test_p6_without_replay_none_is_on_its_way(new_world):
    talk = Talk(new_world(members="a", connect=False), replay_limit=0)
    talk.asked()
    talk.confirmed(0, NOW)
    assert talk.asked() is not None
    assert not talk.replaying


def test_p6_a_new_connection_asks_from_the_position_on(started):
    started.lost("cut")
    again = Talk([started.member])
    again.asked()
    again.confirmed(0, NOW)
    assert again.asked().seq == 10


def test_p6_without_replay_the_clock_alone_is_asked(started):
    started.lost("cut")
    again = Talk([started.member], replay_limit=0)
    again.asked()
    again.confirmed(0, NOW)
    question = again.asked()
    assert question.seq is None
    again.reply(10, to=question)
    assert started.member.events_of(Resynced)[-1].outcome == "unbroken"


def test_a_subscription_that_is_not_confirmed_in_time_ends_the_connection(talk):
    assert talk.next_tick() == NOW + PATIENCE
    talk.tick(NOW + PATIENCE - 0.01)
    assert talk.failure is None
    talk.tick(NOW + PATIENCE)
    assert talk.failure == "a subscription was not confirmed in time"


def test_a_confirmed_subscription_has_no_time_limit(started):
    started.tick(NOW + PATIENCE)
    assert started.failure is None


# --- heartbeats -------------------------------------------------------------------------------------------------------


def test_p4_a_heartbeat_is_asked_every_interval(started):
    started.tick(NOW + HEARTBEAT - 0.01)
    assert not started.outgoing
    started.tick(NOW + HEARTBEAT)
    question = started.asked()
    assert (question.shard, question.seq) == (0, None)
    started.tick(NOW + HEARTBEAT + 0.5)
    assert not started.outgoing  # one question at a time
    started.reply(10, to=question)
    assert started.next_tick() == NOW + 2 * HEARTBEAT
    started.tick(NOW + 2 * HEARTBEAT)
    assert started.asked().token != question.token


def test_p4_a13_the_horizon_is_the_question_not_its_answer(started):
    started.tick(NOW + 1)
    started.reply(10, to=started.asked(), now=NOW + 2)
    assert started.shard.tier.horizon == NOW + 1
    assert started.shard.tier.valid_until == NOW + 1 + MAX_STALENESS


def test_p4_a_heartbeat_behind_a_message_has_it_applied(started):
    started.tick(NOW + 1)
    question = started.asked()
    started.say(Kind.SET, 11, "k")
    started.reply(11, to=question)
    assert started.shard.tier.horizon == NOW + 1
    assert not started.outgoing


@pytest.mark.parametrize(
    "clock",
    [{"seq": 11}, {"seq": 10, "history": b"x"}, {"seq": 0, "epoch": OTHER_EPOCH}],
    ids=["a message was lost", "other nonce (A4)", "clock missing (P9)"],
)
def test_p4_a1_a_heartbeat_that_differs_turns_into_a_resync(started, clock):
    seq = clock.pop("seq")
    started.tick(NOW + 1)
    started.reply(seq, to=started.asked(), now=NOW + 1.2, **clock)
    assert started.shard.state is State.SUSPECT
    assert started.shard.tier.horizon == NOW
    question = started.asked()
    assert question.seq == 10
    started.reply(seq, to=question, now=NOW + 1.4, **clock)
    assert started.shard.state is State.COHERENT
    assert started.shard.position == seq
    assert started.shard.tier.horizon == NOW + 1.2
    assert started.next_tick() == NOW + 1.2 + HEARTBEAT
    assert started.failure is None


def test_p4_heartbeats_compare_the_clocks(talk):
    talk.asked()
    talk.confirmed(0, NOW)
    talk.reply(10, to=talk.asked(), now=NOW + 0.2, time_us=0)
    talk.tick(NOW + 1)
    talk.reply(10, to=talk.asked(), now=NOW + 1, time_us=2_000_000)  # a shorter round trip
    assert talk.shard.lag.offset == pytest.approx(2.0 - (NOW + 1))


def test_each_heartbeat_sweeps_expired_entries(new_world):
    world = new_world(members="a")
    (a,) = world
    a.set("short", 1, ttl=0.5)
    a.settle()
    a.set("long", 1, ttl=50.0)
    a.settle()
    a.beat()
    assert (a.held("short"), a.held("long") is None) == (None, False)


# --- late, superseded and unwanted answers ----------------------------------------------------------------------------


def test_p5_a_late_heartbeat_makes_suspect_once_and_its_answer_coherent(started):
    late = NOW + 1 + SUSPECT_AT * PATIENCE
    started.tick(NOW + 1)
    question = started.asked()
    assert started.next_tick() == late
    started.tick(late - 0.01)
    assert started.shard.state is State.COHERENT
    started.tick(late)
    started.tick(late + 0.1)
    assert started.shard.state is State.SUSPECT
    assert started.next_tick() == NOW + 1 + PATIENCE
    assert len(started.member.events_of(StateChanged)) == 2  # coherent at first, suspect once
    started.reply(10, to=question, now=late + 0.5)
    assert started.shard.state is State.COHERENT
    assert started.shard.tier.horizon == NOW + 1


def test_p4_i6_a_heartbeat_without_an_answer_ends_the_connection(started):
    started.tick(NOW + 1)
    started.tick(NOW + 1 + PATIENCE - 0.01)
    assert started.failure is None
    started.tick(NOW + 1 + PATIENCE)
    assert started.failure == "a heartbeat was not answered in time"


def test_p6_a_resync_without_an_answer_ends_the_connection(talk):
    talk.asked()
    talk.confirmed(0, NOW)
    talk.tick(NOW + PATIENCE)
    assert talk.failure == "a heartbeat was not answered in time"


def test_p4_an_answer_to_another_question_is_no_answer(started):
    started.tick(NOW + 1)
    started.asked()
    started.reply(10, to=Sync(0, b"of another connection", None))
    assert started.shard.tier.horizon == NOW
    started.tick(NOW + 1 + PATIENCE)
    assert started.failure is not None


def test_p4_an_answer_that_nobody_asked_for_is_ignored(started):
    started.reply(50, to=Sync(0, b"nobody", None), status="READONLY")
    assert (started.shard.position, started.failure) == (10, None)


def test_p4_an_answer_comes_once(started):
    started.tick(NOW + 1)
    question = started.asked()
    started.reply(10, to=question)
    started.reply(50, to=question)
    assert started.shard.position == 10


def test_p6_a_resync_supersedes_the_heartbeat_on_its_way(started):
    started.tick(NOW + 1)
    heartbeat = started.asked()
    started.say(Kind.SET, 12, "k")  # 11 is missing
    resync = started.asked()
    assert resync.seq == 10
    started.reply(10, to=heartbeat)  # asked before the gap, and equal to what was applied
    assert (started.shard.tier.horizon, started.shard.state) == (NOW, State.SUSPECT)
    started.reply(12, to=resync, entries=[message(Kind.SET, seq, "x") for seq in (10, 11, 12)])
    assert started.shard.state is State.COHERENT


def test_p6_one_resync_at_a_time(started):
    started.say(Kind.SET, 12, "k")
    resync = started.asked()
    started.say(Kind.SET, 13, "k")
    started.say(Kind.SET, 20, "k")
    started.session.message(0, b"damaged", NOW)
    started.tick(NOW + 0.1)
    assert not started.outgoing
    started.reply(20, to=resync)
    assert (started.shard.position, started.shard.state) == (20, State.COHERENT)


def test_a_damaged_answer_ends_the_connection(started):
    started.tick(NOW + 1)
    started.session.answer(0, b"\x01\xc0", NOW + 1)
    assert started.failure.startswith("damaged sync reply")


@pytest.mark.parametrize("status", ["READONLY", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "LOADING", "ERR"])
@pytest.mark.parametrize("resync", [True, False])
def test_p4_a1_a_server_that_accepts_no_writes_proves_nothing(talk, status, resync):
    if resync:
        talk.asked()
        talk.confirmed(0, NOW)
    else:
        talk.start()
        talk.tick(NOW + 1)
    talk.reply(10, to=talk.asked(), status=status)
    assert talk.failure == f"the server accepts no writes ({status})"
    assert talk.shard.tier.horizon == (-inf if resync else NOW)
    assert (talk.shard.state is State.COHERENT) is not resync


@pytest.mark.parametrize("status", ["MISCONF", "OOM"])
def test_p12_who_begins_to_serve_must_be_entered(talk, status):
    talk.asked()
    talk.confirmed(0, NOW)
    talk.reply(10, to=talk.asked(), status=status)
    assert status in talk.failure
    assert talk.shard.state is State.CONNECTING


def test_p12_while_nobody_can_be_entered_the_registry_is_not_known(started):
    assert started.shard.registered_since(EPOCH, "A", NOW) == NOW
    for at, status, known in ((1, "MISCONF", inf), (2, "", NOW + 2), (3, "", NOW + 2)):
        started.tick(NOW + at)
        started.reply(10, to=started.asked(), status=status)
        assert started.shard.registered_since(EPOCH, "A", NOW + at) == known


# --- receipts ---


def test_p12_a_message_that_wants_receipts_gets_one_when_it_is_applied(started):
    started.say(Kind.SET, 11, "k", wants_receipts=True)
    assert started.asked() == Receipt(0, message(Kind.SET, 11).origin, nonce(11, b"n"))
    started.say(Kind.SET, 12, "k")
    assert not started.outgoing


def test_p12_own_writes_get_no_receipt_whatever_the_origin_says(started):
    collector = started.shard.collect(nonce(11, b"n"))
    started.say(Kind.SET, 11, "k", wants_receipts=True, origin="somebody with the same id")
    assert not started.outgoing
    assert not collector.received


def test_p12_another_instance_of_the_same_id_gets_a_receipt(started):
    started.say(Kind.SET, 11, "k", wants_receipts=True, origin="a")
    assert started.asked() == Receipt(0, "a", nonce(11, b"n"))


def test_p12_a_message_that_breaks_the_stream_is_confirmed_and_asks_for_a_resync(started):
    """It has evicted and marked; what was missed before it is no affair of its writer's."""
    started.say(Kind.SET, 13, "k", wants_receipts=True)
    assert [type(command) for command in started.outgoing] == [Receipt, Sync]


def test_p12_a_message_of_another_history_is_confirmed_for_everything_went(started):
    started.say(Kind.SET, 1, "k", wants_receipts=True, epoch=OTHER_EPOCH)
    assert [type(command) for command in started.outgoing] == [Receipt, Sync]
    assert started.shard.epoch is None


def test_p12_what_cannot_be_understood_is_not_confirmed(started):
    data = bytearray(encode_message(message(Kind.SET, 11, "k", wants_receipts=True)))
    data[2] = 0x40 | 0x3F
    started.session.message(0, bytes(data), NOW)
    assert [type(command) for command in started.outgoing] == [Sync]


def test_p12_what_a_resync_replays_is_confirmed_too(started):
    started.resynchronise(0, NOW)
    entries = [
        message(Kind.SET, 10, "a", wants_receipts=True),
        message(Kind.SET, 11, "k", wants_receipts=True),
        message(Kind.SET, 12, "k"),
    ]
    started.reply(12, to=started.asked(), entries=entries)
    assert started.asked() == Receipt(0, entries[1].origin, entries[1].nonce)


def test_p12_a_receipt_reaches_who_waits_for_it(started):
    mine, other = started.shard.collect(b"mine    "), started.shard.collect(b"other   ")
    before = started.foreign
    started.receipt(0, encode_receipt(b"mine    ", "b"))
    started.receipt(0, encode_receipt(b"nobody's", "b"))
    assert (mine.received, other.received) == ({"b"}, set())
    assert started.foreign == before + 2, "somebody waits for it, so it is in a hurry"


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x02\x92", b"\x01\xc1", encode_receipt(b"short", "b")])
def test_p12_a_damaged_receipt_is_dropped(started, data):
    collector = started.shard.collect(b"mine    ")
    started.receipt(0, data)
    assert (collector.received, started.failure, list(started.outgoing)) == (set(), None, [])


# --- what a full server means ---


@pytest.mark.parametrize("status", ["", "MISCONF", "OOM"])
def test_p4_a_full_primary_is_a_primary(started, status):
    assert status in WRITABLE_STATUSES
    started.tick(NOW + 1)
    started.reply(10, to=started.asked(), status=status)
    assert started.failure is None
    assert started.shard.tier.horizon == NOW + 1


def test_a28_an_ended_subscription_ends_the_connection(started):
    started.unsubscribed()
    assert started.failure == "the server ended a subscription"


# --- messages ---------------------------------------------------------------------------------------------------------


def test_p6_a_gap_asks_for_a_resync_at_once(started):
    started.say(Kind.SET, 12, "k")
    assert started.asked().seq == 10
    assert started.member.events_of(MessageGap) == [MessageGap(0, 11, 12)]


def test_p9_a_message_of_another_epoch_asks_for_a_resync_from_nowhere(started):
    started.say(Kind.SET, 1, "k", epoch=OTHER_EPOCH)
    assert started.asked().seq is None
    assert started.shard.state is State.CONNECTING


def hold(member, key):
    member.shard.tier.insert(key, make_entry("v", seq=5, size=1), NOW)


NEWER_FORMAT = b"\x02" + encode_message(message(Kind.SET, 11, "k"))[1:]
NEWER_KIND = encode_message(message(77, 11, "k"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "empty"), (b"\x01damaged", ""), (encode_message(message(Kind.SET, 11, "k"))[:-1], "")],
    ids=["empty", "damaged", "truncated"],
)
def test_p8_what_cannot_be_understood_flushes_and_asks_for_a_resync(started, data, reason):
    hold(started.member, "k")
    started.session.message(0, data, NOW)
    assert started.asked().seq == 10
    assert started.member.held("k") is None
    assert started.shard.state is State.SUSPECT
    (event,) = started.member.events_of(MessageDamaged)
    assert event.reason.startswith(reason)
    assert event.dropped == 1
    assert started.failure is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [(NEWER_FORMAT, "message of format 2, this release knows 1"), (NEWER_KIND, "message of kind 77")],
)
def test_p8_a_newer_releases_message_flushes_each_time_and_is_told_once_a_minute(started, data, reason):
    for number in range(3):
        hold(started.member, "k")
        started.session.message(0, data, NOW + number)
        assert started.member.held("k") is None
        assert started.shard.state is State.SUSPECT
    started.session.message(0, data, NOW + UNKNOWN_FORMAT_SECONDS)
    assert started.member.events_of(UnknownFormatSeen) == [
        UnknownFormatSeen(0, "message", reason, 1),
        UnknownFormatSeen(0, "message", reason, 3),
    ]
    assert started.member.events_of(MessageDamaged) == []
    assert started.failure is None


def test_p8_a_message_before_the_subscriptions_are_confirmed_is_applied_and_asks_nothing(started):
    started.lost("cut")
    again = Talk([started.member])
    again.asked()
    hold(started.member, "k")
    again.say(Kind.SET, 12, "k")
    again.session.message(0, b"damaged", NOW)
    assert started.member.held("k") is None
    assert (started.shard.position, list(again.outgoing)) == (10, [])


def test_messages_of_others_are_counted_and_own_ones_applied_all_the_same(started):
    """R4, A24: whoever drops a message because its own id is in it drops real invalidations one day."""
    for origin, seq in (("a", 11), ("b", 12), ("a", 13)):
        hold(started.member, "k")
        started.say(Kind.SET, seq, "k", origin=origin)
        assert started.member.held("k") is None
    assert started.foreign == 1
    assert started.shard.position == 13


# --- time, doubt and the end ------------------------------------------------------------------------------------------


def test_p5_the_bound_lapses_though_the_connection_seems_alive(started):
    started.session._questions.clear()
    started.session._next_beat[0] = inf
    assert started.next_tick() == pytest.approx(NOW + MAX_STALENESS + 0.001)
    started.tick(started.next_tick())
    assert started.shard.state is State.DISCONNECTED
    assert started.next_tick() == inf


def test_p5_a_session_that_gets_no_answer_lapses(talk):
    talk.tick(NOW)
    talk.tick(NOW + MAX_STALENESS + 0.01)
    assert talk.shard.state is State.DISCONNECTED


def test_p6_a_shard_that_lost_its_history_elsewhere_is_resynchronised_by_the_next_tick(new_world):
    """A reply showed another epoch: nobody told the session but the shard itself."""
    world = new_world(members="a")
    (a,) = world
    world.server.flushall()
    a.set("k", 1)
    a.link.items.clear()  # its message may be long in coming
    assert a.shard.state is State.CONNECTING
    a.tick()
    assert a.session.outgoing[0].seq is None
    a.settle()
    assert a.shard.state is State.COHERENT


def test_p3_a_lost_connection_makes_each_shard_suspect_once(new_world):
    world = new_world(members="a", shards=2)
    (a,) = world
    a.session.lost("closed by the server")
    for shard in a.instance.shards:
        assert (shard.state, shard.synced) == (State.SUSPECT, False)
    assert [event.cause for event in a.events_of(StateChanged)[-2:]] == ["closed by the server"] * 2
    other = a.session
    a.connect()
    other.lost("again")  # whoever closes it twice does no harm to its successor
    assert a.instance.state(a.clock.now) is State.COHERENT


def test_shards_are_asked_and_judged_one_by_one(new_world):
    world = new_world(members="a", shards=2)
    (a,) = world
    world.clock.now += 1
    a.tick()
    assert [command.shard for command in a.session.outgoing] == [0, 1]
    world.server.shards[1].seq += 1  # something is missing there
    a.send()
    a.deliver(2)
    assert [shard.state for shard in a.instance.shards] == [State.COHERENT, State.SUSPECT]
    assert [command.shard for command in a.session.outgoing] == [1]
    a.settle()
    assert a.instance.state(world.clock.now) is State.COHERENT


def test_the_next_tick_is_the_earliest_of_all_shards(new_world):
    world = new_world(members="a", shards=2)
    (a,) = world
    assert a.session.next_tick() == NOW + HEARTBEAT
    world.clock.now += 1
    a.tick()
    assert a.session.next_tick() == NOW + 1 + SUSPECT_AT * PATIENCE
    a.send()
    a.deliver()
    assert a.session.next_tick() == NOW + 2 * HEARTBEAT


# --- with a server ----------------------------------------------------------------------------------------------------


def outcomes(member):
    return [event.outcome for event in member.events_of(Resynced)]


def test_i4_i5_what_a_lost_connection_missed_is_replayed_and_the_tier_stays_warm(new_world):
    world = new_world()
    a, b = world
    for key in ("x", "y", "z"):
        a.set(key, "old")
    world.settle()
    a.cut()
    b.set("y", "new")
    b.delete("unknown").run()
    a.connect()
    assert outcomes(a) == ["first", "replayed"]
    assert a.instance.counters.replays == 2
    assert (a.hit("x"), a.hit("y"), a.hit("z")) == ("old", ABSENT, "old")
    assert a.get("y") == "new"
    assert a.instance.counters.flushes == 0


def test_p6_nothing_missed_nothing_dropped(new_world):
    world = new_world()
    a, _ = world
    a.set("k", "v")
    a.settle()
    a.connect()
    assert outcomes(a) == ["first", "unbroken"]
    assert a.hit("k") == "v"


@pytest.mark.parametrize(("missed", "outcome"), [(3, "replayed"), (4, "flushed")])
def test_p6_replay_up_to_the_limit_and_flush_beyond(new_world, missed, outcome):
    world = new_world(replay_limit=3)
    a, b = world
    a.set("k", "v")
    a.settle()
    a.cut()
    for number in range(missed):
        b.set("x", number)
    a.connect()
    assert outcomes(a)[-1] == outcome
    assert a.hit("k") == ("v" if outcome == "replayed" else ABSENT)


@pytest.mark.parametrize(("missed", "outcome"), [(2, "replayed"), (3, "flushed")])
def test_a30_a_trimmed_log_flushes(new_world, missed, outcome):
    """The entry at the own position must be there: it proves that the others follow it."""
    world = new_world(log_length=3, replay_limit=3)
    a, b = world
    a.set("k", "v")
    a.settle()
    a.cut()
    for number in range(missed):
        b.set("x", number)
    a.connect()
    assert outcomes(a)[-1] == outcome


def test_a30_a_log_that_was_lost_and_begun_again_flushes(new_world):
    world = new_world()
    a, b = world
    a.set("k", "v")
    a.settle()
    a.cut()
    b.set("k", "new")
    world.server.lose_log()
    b.set("x", 1)
    a.connect()
    assert outcomes(a)[-1] == "flushed"
    assert a.get("k") == "new"


def test_a30_a_damaged_log_entry_flushes(new_world):
    world = new_world()
    a, b = world
    a.set("k", "v")
    a.settle()
    a.cut()
    b.set("k", "new")
    log = world.server.shards[0].log
    log[-1] = (log[-1][0], b"\x01 damaged")
    a.connect()
    assert outcomes(a)[-1] == "flushed"


def test_a4_a_failover_that_reaches_the_same_number_is_another_history(new_world):
    world = new_world()
    a, b = world
    a.set("k", "kept")
    replica = world.server.replica("B")
    b.set("k", "lost")
    world.settle()
    assert a.get("k") == "lost"
    world.fail_over(replica)
    b.set("x", 1)  # the same number again
    assert replica.shards[0].seq == a.shard.position
    a.connect()
    assert outcomes(a)[-1] == "flushed"
    assert a.get("k") == "kept"


def test_a4_a_failover_that_went_past_my_position_is_another_history(new_world):
    world = new_world()
    a, b = world
    a.set("k", "kept")
    replica = world.server.replica("B")
    b.set("k", "lost")
    world.settle()
    assert a.get("k") == "lost"
    world.fail_over(replica)
    b.set("x", 1)
    b.set("x", 2)
    a.connect()
    assert outcomes(a)[-1] == "flushed"
    assert a.get("k") == "kept"


def test_a5_a_write_ahead_of_the_stream_that_a_failover_lost_is_dropped(new_world):
    world = new_world()
    a, b = world
    a.set("k", "kept")
    world.settle()
    replica = world.server.replica("B")
    a.set("k", "lost")  # kept locally; its message has not come
    position = a.shard.position
    world.fail_over(replica)
    b.set("x", 1)  # takes the same number, and says nothing about the key
    a.connect()
    assert outcomes(a)[-1] == "replayed"
    assert a.shard.position == position + 1
    assert a.hit("k") is ABSENT
    assert a.get("k") == "kept"


def test_a1_a_demoted_primary_cannot_prove_anything(new_world):
    world = new_world()
    a, b = world
    a.set("k", "v")
    world.settle()
    world.server.status = "READONLY"
    world.clock.now += 1
    a.tick()
    a.settle()
    assert a.session.failure == "the server accepts no writes (READONLY)"
    a.cut()
    assert a.hit("k") == "v"  # within the bound of the last proof
    world.clock.now += MAX_STALENESS - 1 + 0.01
    assert a.hit("k") is ABSENT
    assert a.shard.state_at(world.clock.now) is State.DISCONNECTED
    assert b.shard.state_at(world.clock.now) is State.DISCONNECTED


def test_i6_a_half_open_link_serves_no_longer_than_the_bound(new_world):
    world = new_world()
    a, b = world
    a.set("k", "old")
    world.settle()
    world.server.links.remove(a.link)  # nothing comes through any more, and nobody says so
    b.set("k", "new")
    world.clock.now += MAX_STALENESS
    assert a.hit("k") == "old"
    world.clock.now += 0.01
    assert a.hit("k") is ABSENT
    assert a.get("k") == "new"


def test_i5_a_silent_loss_is_found_by_the_next_heartbeat(new_world):
    world = new_world()
    a, b = world
    a.set("k", "old")
    world.settle()
    b.set("k", "new")
    a.link.items.clear()  # dropped, and no exception
    a.beat()
    assert outcomes(a) == ["first", "replayed"]
    assert a.hit("k") is ABSENT


@pytest.mark.parametrize("lose", ["lose_clock", "flushall"])
def test_i12_i19_lost_data_is_found_by_the_next_heartbeat(new_world, lose):
    world = new_world()
    a, b = world
    a.set("k", "v")
    world.settle()
    getattr(world.server, lose)()
    a.beat()
    assert a.shard.state is State.COHERENT
    assert a.get("k") is ABSENT
    b.set("k", "again")
    assert a.get("k") == "again"


# --- what an instance tells of itself ---


@pytest.fixture
def telling(new_world):
    return Talk(new_world(members="a", connect=False), reporter=True)


def reports(talk):
    """Take what is to be sent; return the reports in it, and the questions that are to be answered."""
    sent = list(talk.session.outgoing)
    talk.session.outgoing.clear()
    return [each for each in sent if isinstance(each, Report)], [each for each in sent if isinstance(each, Sync)]


def test_an_instance_reports_itself_with_every_second_heartbeat(telling):
    telling.start()
    telling.tick(NOW)
    (first,), _ = reports(telling)
    assert (decode_report(first.data).instance, first.expiry_ms) == ("a", 6000)

    counts = []
    for beat in range(1, 7):
        telling.tick(NOW + beat)
        told, (heartbeat,) = reports(telling)
        counts.append(len(told))
        telling.reply(10, to=heartbeat)
    assert counts == [0, 1, 0, 1, 0, 1]


def test_a_report_wakes_nobody(telling):
    telling.start()
    telling.tick(NOW)
    telling.session.outgoing.clear()

    assert telling.next_tick() == NOW + HEARTBEAT


def test_who_is_not_synchronised_on_a_connection_does_not_report_on_it(telling):
    telling.tick(NOW)
    telling.asked()
    telling.session.confirmed(0, NOW)
    telling.tick(NOW)

    assert reports(telling)[0] == []


def test_a_question_is_answered_at_any_time(telling):
    telling.asked()
    question = encode_question(Question(b"12345678", Ask.STATUS))

    telling.session.question(question, NOW)
    answer = telling.asked()
    assert isinstance(answer, Response)
    assert answer.question == b"12345678"
    telling.session.question(b"damaged", NOW)
    assert not telling.session.outgoing
    assert telling.foreign == 2


def test_who_tells_nothing_of_itself_neither_reports_nor_answers(talk):
    assert talk.silent
    talk.start()
    talk.tick(NOW)
    talk.session.question(encode_question(Question(b"12345678", Ask.STATUS)), NOW)

    assert not talk.session.outgoing
