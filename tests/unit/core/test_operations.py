"""The operations, stopped between request and reply: what they ask, what they keep, and what they leave behind.

Two members, ``a`` and ``b``, share a fake Redis. ``execute`` lets Redis work, ``finish`` delivers the replies,
``settle`` delivers the messages that wait for a member. Names carry the rule or catalogue line.
"""

import copy
import json
import pickle
import zlib
from contextlib import suppress
from dataclasses import replace
from math import inf
from types import SimpleNamespace

import pytest

from coherent_cache.core import operations
from coherent_cache.core.entries import RemovalCause
from coherent_cache.core.operations import MISSING
from coherent_cache.core.requests import (
    MAX_BYTES_PER_SCRIPT,
    MAX_KEYS_PER_SCRIPT,
    Condition,
    DeleteRequest,
    FloorRequest,
    Loaded,
    LoadRequest,
    ReadRequest,
    StoreRequest,
    TouchRequest,
)
from coherent_cache.core.states import State
from coherent_cache.errors import (
    CacheUnavailable,
    ConfigError,
    ForeignValue,
    InvalidKey,
    NamespaceMismatch,
    SerializationError,
    ValueTooLarge,
    VersionConflict,
)
from coherent_cache.events import ForeignValueSeen, Resynced, UnknownFormatSeen
from coherent_cache.keys import key_digest
from coherent_cache.serializers import make_codec
from coherent_cache.serializers.compression import make_compressor
from coherent_cache.versions import Version
from coherent_cache.wire import Kind, compressed_prefix, encode_content, encode_envelope, envelope_prefix
from tests.unit.core.model import (
    ABSENT,
    EPOCH,
    MAX_STALENESS,
    OTHER_EPOCH,
    envelope,
    read_reply,
    sync_reply,
    write_reply,
)

REFUSED = CacheUnavailable("out of memory")
TIMED_OUT = CacheUnavailable("timed out", maybe_applied=True)


@pytest.fixture
def world(new_world):
    return new_world()


# --- reading ----------------------------------------------------------------------------------------------------------


def test_p2_a_read_fills_what_is_there(world):
    a, b = world
    b.set("k", "v")
    b.set("x", ["a list"])
    a.settle()
    assert a.read("k", "x", "nothing").run() == {"k": "v", "x": ["a list"]}
    assert (a.hit("k"), a.hit("x"), a.hit("nothing")) == ("v", ["a list"], ABSENT)
    assert a.instance.counters.redis_hits == 2


def test_p2_a_read_asks_for_each_key_once(world):
    a, _ = world
    flight = a.read("k", "é", "k")
    assert flight.requests == [ReadRequest(0, (b"k", "é".encode()))]
    flight.run()


def test_a_read_of_nothing_asks_nothing(world):
    a, _ = world
    flight = a.read()
    assert (flight.done, flight.result) == (True, {})


def test_what_a_read_of_one_key_found(world):
    a, b = world
    version = b.set("k", "v", ttl=10.0)
    world.clock.now += 1
    found = a.begin(operations.read_one, "k").run()
    assert found == operations.Found("v", version, world.clock.now + 9, world.clock.now)
    assert a.begin(operations.read_one, "nothing").run() is None


@pytest.mark.parametrize(
    ("keys", "words"),
    [((1,), "must be a str"), (("",), "1 to 1,024"), (("k", "\ud800"), "surrogates"), (([],), "not even hashable")],
)
def test_a_key_that_is_none_is_refused_before_anything_is_asked(world, keys, words):
    a, _ = world
    for operation in (operations.read, operations.delete):
        with pytest.raises(InvalidKey, match=words):
            a.begin(operation, keys)
    if keys != ([],):
        with pytest.raises(InvalidKey, match=words):
            a.store(dict.fromkeys(keys, 1))
        with pytest.raises(InvalidKey, match=words):
            a.touch(keys[-1], 1.0)
        with pytest.raises(InvalidKey, match=words):
            a.update(keys[-1], str)


def test_a_read_of_many_keys_is_one_round_trip_in_pieces(world):
    a, _ = world
    keys = [f"k{number}" for number in range(2 * MAX_KEYS_PER_SCRIPT + 1)]
    a.store(dict.fromkeys(keys[:3], "v")).run()
    flight = a.read(*keys)
    assert [len(request.keys) for request in flight.requests] == [MAX_KEYS_PER_SCRIPT, MAX_KEYS_PER_SCRIPT, 1]
    assert flight.run() == dict.fromkeys(keys[:3], "v")
    assert flight.done


def test_a_read_asks_each_shard_for_its_keys(new_world):
    world = new_world(shards=4)
    a, b = world
    keys = [f"k{number}" for number in range(40)]
    b.store({key: key for key in keys}).run()
    world.settle()
    flight = a.read(*keys)
    assert sorted(request.shard for request in flight.requests) == [0, 1, 2, 3]
    for request in flight.requests:
        assert {a.instance.shard_of(key).index for key in request.keys} == {request.shard}
    assert flight.run() == {key: key for key in keys}
    assert all(a.hit(key) == key for key in keys)


# --- P7: fills against what happens in between ------------------------------------------------------------------------


def test_p7_a15_the_token_is_there_before_the_request_is_sent(world):
    a, _ = world
    flights = [a.read("k"), a.store({"k": 1}), a.delete("k"), a.touch("k", 1.0), a.update("k", str)]
    assert a.tokens() == len(flights)
    for flight in flights:
        flight.close()


def test_i1_a_peers_write_overtakes_a_fill(world):
    a, b = world
    b.set("k", "old")
    world.settle()
    fill = a.read("k").execute()
    b.set("k", "new")
    a.settle()  # the message comes, there is nothing to evict
    assert fill.run() == {"k": "old"}  # returned: it was current after the call began
    assert a.hit("k") is ABSENT
    assert a.get("k") == "new"
    assert a.hit("k") == "new"


def test_i1_a_peers_write_whose_message_comes_after_the_fill(world):
    a, b = world
    b.set("k", "old")
    world.settle()
    fill = a.read("k").execute()
    b.set("k", "new")
    fill.run()
    assert a.hit("k") == "old"  # within the propagation delay
    a.settle()
    assert a.hit("k") is ABSENT


@pytest.mark.parametrize("change", ["delete", "touch"])
def test_i1_a_peers_delete_or_touch_overtakes_a_fill(world, change):
    a, b = world
    b.set("k", "old")
    world.settle()
    fill = a.read("k", "x").execute()
    (b.delete("k") if change == "delete" else b.touch("k", 9.0)).run()
    a.settle()
    fill.run()
    assert a.held("k") is None


def test_i2_an_own_write_overtakes_a_fill(world):
    a, _ = world
    a.set("k", "old")
    a.settle()
    a.instance.clear_local()
    fill = a.read("k").execute()
    a.set("k", "new")  # another thread; its message is not here yet
    a.shard.tier.remove("k", RemovalCause.SIZE)
    fill.run()
    assert a.hit("k") is ABSENT


def test_i2_an_own_delete_overtakes_a_fill(world):
    a, _ = world
    a.set("k", "old")
    fill = a.read("k").execute()
    assert a.delete("k").run() == 1
    fill.run()
    assert a.hit("k") is ABSENT


@pytest.mark.parametrize("first", [0, 1])
def test_i2_own_writes_at_the_same_time_end_with_the_later(world, first):
    a, _ = world
    writes = [a.store({"k": "one"}).execute(), a.store({"k": "two"}).execute()]
    writes[first].finish()
    writes[1 - first].finish()
    assert a.hit("k") == "two"
    a.settle()
    assert a.hit("k") == "two"  # own messages are applied like all others, and are not newer than the entry


def test_r4_a_message_is_not_skipped_because_it_is_an_own_one(world):
    """Its write may have been followed by another's that this instance read before."""
    a, _ = world
    a.set("k", "one")
    a.settle()
    a.instance.clear_local()
    fill = a.read("k").execute()
    write = a.store({"k": "two"}).execute()
    a.settle()  # the own message overtakes the own reply
    fill.run()
    assert a.hit("k") is ABSENT
    write.finish()
    assert a.hit("k") == "two"


def test_a3_a_fill_does_not_bring_back_what_another_thread_saw_replaced(world):
    a, b = world
    b.set("k", "old")
    world.settle()
    slow = a.read("k").execute()
    b.set("k", "new")
    assert a.get("k") == "new"  # another thread, by a later read; the message is not here yet
    a.shard.tier.remove("k", RemovalCause.SIZE)
    slow.run()
    assert a.hit("k") is ABSENT


def test_a3_a_bypassing_read_is_knowledge(world):
    """Suspect: nothing is kept, local hits go on. What the read returned must not be followed by something older."""
    a, b = world
    b.set("k", "old")
    world.settle()
    assert a.get("k") == "old"
    b.set("k", "new")
    a.cut()
    assert a.read("k").run() == {"k": "new"}
    assert a.hit("k") is ABSENT


def test_a19_an_absence_is_knowledge(world):
    a, b = world
    b.set("k", "old")
    world.settle()
    slow = a.read("k").execute()
    b.delete("k").run()
    assert a.get("k") is ABSENT
    slow.run()
    assert a.hit("k") is ABSENT


def test_a19_an_absence_without_a_new_version_is_knowledge(world):
    """Evicted by Redis: the clock did not move."""
    a, b = world
    b.set("k", "old")
    world.settle()
    slow = a.read("k").execute()
    world.server.shards[0].values.clear()
    assert a.get("k") is ABSENT
    slow.run()
    assert a.hit("k") is ABSENT


def test_a19_a_write_after_the_absence_was_seen_is_kept(world):
    a, _ = world
    write = a.store({"k": "v"})
    seen = a.read("k").execute()
    write.execute()
    seen.run()
    write.finish()
    assert a.hit("k") == "v"


@pytest.mark.parametrize("begin", ["while connected", "while cut"])
def test_a2_a_fill_that_a_flush_overtook_is_refused(world, begin):
    """Its message was lost with the connection: only the generation knows."""
    a, b = world
    b.set("k", "old")
    world.settle()
    if begin == "while connected":
        fill = a.read("k").execute()
        a.cut()
    else:
        a.cut()  # the break is noticed: a generation bumped here would be the current one
        fill = a.read("k").execute()
    b.set("k", "new")
    world.server.lose_log()
    a.connect()
    fill.run()
    assert a.hit("k") is ABSENT
    assert a.events_of(Resynced)[-1].outcome == "flushed"


def test_a2_a_fill_in_flight_over_a_replay_is_refused(world):
    a, b = world
    b.set("k", "old")
    world.settle()
    a.cut()
    fill = a.read("k").execute()
    b.set("k", "new")
    a.connect()
    fill.run()
    assert a.hit("k") is ABSENT


@pytest.mark.parametrize("by", ["message", "own reply"])
def test_a20_a_clear_overtakes_a_fill(world, by):
    a, b = world
    b.set("k", "old")
    world.settle()
    fill = a.read("k").execute()
    (b if by == "message" else a).clear().run()
    if by == "message":
        a.settle()
    fill.run()
    assert a.hit("k") is ABSENT
    a.settle()
    assert a.get("k") is ABSENT


@pytest.mark.parametrize("by", ["message", "own reply"])
def test_a20_a_tag_invalidation_overtakes_a_fill(world, by):
    """The message cannot know the keys, and nobody here knew the tags when it came."""
    a, b = world
    b.store({"red": 1, "red too": 1}, tags=("colour",)).run()
    b.set("plain", 1)
    world.settle()
    fill = a.read("red", "plain", "red too").execute()
    (b if by == "message" else a).invalidate("colour").run()
    if by == "message":
        a.settle()
    fill.run()
    assert (a.hit("red"), a.hit("red too"), a.hit("plain")) == (ABSENT, ABSENT, 1)


def test_a20_a_clear_overtakes_an_own_write(world):
    a, b = world
    write = a.store({"k": 1}).execute()
    b.clear().run()
    a.settle()
    write.finish()
    assert a.hit("k") is ABSENT


def test_clear_local_lets_a_fill_in_flight_in(world):
    a, b = world
    b.set("k", "v")
    world.settle()
    fill = a.read("k").execute()
    a.instance.clear_local()
    fill.run()
    assert a.hit("k") == "v"


# --- fail-over --------------------------------------------------------------------------------------------------------


def test_p16_a6_a_pooled_connection_to_the_old_primary_fills_nothing(world):
    a, b = world
    b.set("k", "old")
    world.settle()
    old, new = world.server, world.server.replica("B")
    world.fail_over(new)
    a.connect()
    b.set("k", "new")
    a.settle()
    zombie = a.read("k").execute(old)  # not the primary any more, and it does not know
    zombie.run()
    assert a.hit("k") is ABSENT
    assert a.get("k") == "new"


@pytest.mark.parametrize("noticed", [True, False])
@pytest.mark.parametrize("write", ["set", "delete", "touch", "clear", "invalidate", "update"])
def test_p16_r6_own_writes_are_read_after_a_failover_that_goes_back(world, write, noticed):
    """The replica lags: it acknowledges under a number that is below the one of the local entry."""
    a, _ = world
    a.set("k", "kept", tags=("tag",))
    replica = world.server.replica("B")
    for number in range(5):
        a.set("x", number)
    a.set("k", "lost", tags=("tag",))
    world.settle()
    assert a.hit("k") == "lost"
    if noticed:
        world.fail_over(replica)  # suspect: local hits go on
    else:
        a.server = replica  # the subscriber's link is half open
    match write:
        case "set":
            a.set("k", "new")
        case "delete":
            a.delete("k").run()
        case "touch":
            a.touch("k", 99.0).run()
        case "clear":
            a.clear().run()
        case "invalidate":
            a.invalidate("tag").run()
        case "update":
            a.update("k", lambda value: f"{value} and changed").run()
    expected = {"set": "new", "touch": "kept", "update": "kept and changed"}
    assert a.get("k") == expected.get(write, ABSENT)
    a.connect(replica)
    assert a.get("k") == expected.get(write, ABSENT)


def test_p9_r6_own_writes_are_read_after_a_failover_back_to_a_past_epoch(world):
    a, _ = world
    a.set("k", "kept")
    replica = world.server.replica("B")
    world.server.lose_clock()
    a.set("k", "in the new epoch")
    a.tick()
    a.settle()
    a.set("k", "lost")
    assert a.hit("k") == "lost"
    world.fail_over(replica)
    a.set("k", "new")
    assert a.get("k") == "new"


# --- P9: lost history -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lose", ["lose_clock", "flushall"])
def test_p9_i19_a_read_notices_that_the_clock_is_missing(world, lose):
    a, _ = world
    a.store({"k": 1, "x": 2}).run()
    world.settle()
    getattr(world.server, lose)()
    assert a.read("k").run() == {}  # the envelope is there still, or not: dead in any case
    assert a.hit("x") is ABSENT
    assert a.shard.state is State.CONNECTING
    a.tick()
    a.settle()
    assert a.shard.state is State.COHERENT
    assert a.get("x") is ABSENT


def test_p9_a_write_makes_a_new_epoch_and_notices_it(world):
    a, b = world
    first = a.set("k", "old")
    world.settle()
    assert b.get("k") == "old"
    world.server.lose_clock()
    second = a.set("x", "new")
    assert second.epoch != first.epoch
    assert (a.hit("k"), a.hit("x")) == (ABSENT, ABSENT)
    b.settle()  # by message
    assert b.hit("k") is ABSENT
    a.settle()
    for member in world:
        member.tick()
        member.settle()
        assert (member.get("k"), member.get("x")) == (ABSENT, "new")


@pytest.mark.parametrize("operation", ["clear", "invalidate", "delete", "touch"])
def test_p9_other_operations_notice_it_as_well(world, operation):
    a, _ = world
    a.set("k", 1)
    a.settle()
    world.server.lose_clock()
    flight = {
        "clear": a.clear,
        "invalidate": lambda: a.invalidate("tag"),
        "delete": lambda: a.delete("x"),
        "touch": lambda: a.touch("x", 1.0),
    }[operation]()
    flight.run()
    assert a.hit("k") is ABSENT


def test_p9_a_late_reply_of_a_past_epoch_brings_nothing_back(world):
    a, b = world
    b.set("k", "of the past")
    world.settle()
    slow = a.read("k").execute()
    world.server.flushall()
    b.set("x", 1)
    a.settle()
    b.tick()
    b.settle()
    a.get("x")
    assert a.hit("x") == 1
    slow.run()
    assert (a.hit("k"), a.hit("x")) == (ABSENT, 1)
    assert a.shard.state is State.COHERENT


def test_p9_cas_over_a_lost_history_is_a_conflict(world):
    """The same number in another epoch is another version."""
    a, b = world
    version = a.set("k", "one")
    world.settle()
    world.server.flushall()
    b.set("k", "two")
    assert world.server.live("k").seq == version.seq
    with pytest.raises(VersionConflict) as caught:
        a.store({"k": "three"}, condition=Condition(version.epoch, version.seq)).run()
    assert caught.value.current.epoch != version.epoch


# --- P2, P10: which envelopes count -----------------------------------------------------------------------------------


@pytest.fixture
def reader(new_world):
    """A member at position 10 of EPOCH, whose replies the test makes."""
    (a,) = new_world(members="a", connect=False)
    a.shard.resync(sync_reply(10), server="A", sent_at=a.clock.now, now=a.clock.now)
    return a


def answered(member, key, data, **options):
    """Let a read of one key be answered with this envelope; return its value or ABSENT."""
    flight = member.read(key)
    flight.answer(read_reply(envelopes=[data], sent_at=member.clock.now, **options))
    return flight.result.get(key, ABSENT)


@pytest.mark.parametrize(
    ("made", "asked", "lives"),
    [
        ({"seq": 10}, {}, True),
        ({"seq": 11}, {}, False),
        ({"seq": 5}, {"floor": 4}, True),
        ({"seq": 5}, {"floor": 5}, False),
        ({"seq": 5, "epoch": OTHER_EPOCH}, {}, False),
        ({"seq": 5}, {"epoch": b"", "seq": 0}, False),
        ({"seq": 5, "expires_ms": 5_001}, {"now_ms": 5_000}, True),
        ({"seq": 5, "expires_ms": 5_000}, {"now_ms": 5_000}, False),
        ({"seq": 5, "expires_ms": 0}, {"now_ms": 5_000}, True),
        ({"seq": 5, "tags": ("t",)}, {"tag_floors": [4]}, True),
        ({"seq": 5, "tags": ("t",)}, {"tag_floors": [5]}, False),
        ({"seq": 5, "tags": ("t",)}, {"tag_seq": 4}, True),
        ({"seq": 5, "tags": ("t",)}, {"tag_seq": 5}, True),
        ({"seq": 5}, {"tag_seq": 9}, True),
    ],
    ids=[
        "at the clock",
        "above the clock",
        "above the floor",
        "at the floor",
        "of another epoch",
        "without a clock",
        "not expired",
        "expired at the boundary",
        "never expires",
        "above its tags' floor",
        "at its tags' floor",
        "newer than any tag's invalidation",
        "as new as a tag's invalidation",
        "tags invalidated, none here",
    ],
)
def test_p2_p10_a9_an_envelope_counts_if_its_history_holds_it(reader, made, asked, lives):
    assert answered(reader, "k", envelope(reader, "k", "v", **made), **asked) == ("v" if lives else ABSENT)
    assert reader.hit("k") == ("v" if lives else ABSENT)


def test_p2_what_does_not_count_is_an_absence_and_evicts(reader):
    answered(reader, "k", envelope(reader, "k", "v", 5))
    assert reader.hit("k") == "v"
    assert answered(reader, "k", envelope(reader, "k", "v", 5), floor=7) is ABSENT
    assert reader.held("k") is None


def test_p2_tag_floors_belong_to_their_keys(reader):
    flight = reader.read("dead", "plain", "alive")
    data = [envelope(reader, key, key, 5, tags=("t",)) for key in ("dead", "plain", "alive")]
    flight.answer(read_reply(envelopes=data, tag_floors=[6, 0, 4]))
    assert sorted(flight.result) == ["alive", "plain"]


def test_p10_values_older_than_a_tag_invalidation_are_asked_for_again(world):
    """The first question is cheap and cannot judge tags; only doubtful keys are asked the dear one."""
    a, b = world
    b.store({"dead": 1}, tags=("red",)).run()
    b.store({"alive": 2}, tags=("blue",)).run()
    b.set("plain", 3)
    b.invalidate("red").run()
    b.store({"new": 4}, tags=("red",)).run()
    world.settle()
    flight = a.read("dead", "alive", "plain", "new", "nothing")
    flight.execute().finish()
    assert flight.requests == [ReadRequest(0, (b"dead", b"alive"), judge_tags=True)]
    assert (a.hit("plain"), a.hit("new"), a.held("alive")) == (3, 4, None)
    assert a.tokens() == 1
    assert flight.run() == {"alive": 2, "plain": 3, "new": 4}
    assert (a.hit("alive"), a.held("dead")) == (2, None)
    assert a.instance.counters.redis_hits == 3


def test_p10_what_overtakes_the_second_question_is_seen(world):
    a, b = world
    b.store({"k": "old"}, tags=("blue",)).run()
    b.invalidate("red").run()
    world.settle()
    flight = a.read("k").execute().finish()  # not judged yet
    b.set("k", "new")
    a.settle()
    assert flight.run() == {"k": "new"}
    assert a.hit("k") == "new"
    again = a.read("k").execute()
    b.set("k", "newest")
    a.settle()
    again.run()
    assert a.held("k") is None


def test_p2_values_of_one_bulk_write_are_told_apart_from_their_neighbours(new_world):
    """What has the stamp of the live value before it is taken without another look; what differs in anything is not."""
    (reader,) = new_world(members="a", connect=False, on_foreign="miss")
    reader.shard.resync(sync_reply(10), server="A", sent_at=reader.clock.now, now=reader.clock.now)
    sent_at = reader.clock.now

    def made(key, value=None, seq=5, expires_ms=6_000, **options):
        return key, envelope(reader, key, key if value is None else value, seq, expires_ms=expires_ms, **options)

    packed = "packed", compressed_twin(reader, "packed", made("packed", "z" * 40)[1])
    data = dict(
        [
            made("a"), made("twin"), made("of another codec", codec="json"), made("twin of that"),
            packed, made("another twin"), made("older", seq=4), ("none", None),
            made("dead", expires_ms=4_000), made("dead twin", expires_ms=4_000),
            made("of another epoch", epoch=OTHER_EPOCH), made("twin there", epoch=OTHER_EPOCH),
            made("for ever", b"l" * 300, expires_ms=0), made("its twin", b"l" * 300, expires_ms=0),
            made("tagged", tags=("t",)), made("tagged twin", tags=("t",)),
            made("before"), ("of another key", made("x")[1]), ("damaged", made("damaged")[1][:-1]), made("last"),
        ]
    )  # fmt: skip
    flight = reader.read(*data)
    flight.answer(read_reply(envelopes=list(data.values()), now_ms=5_000, sent_at=sent_at))
    gone = {"none", "dead", "dead twin", "of another epoch", "twin there", "of another key", "damaged"}
    values = {key: key for key in data if key not in gone}
    values |= {"packed": "z" * 40, "for ever": b"l" * 300, "its twin": b"l" * 300}
    assert flight.result == values
    held = {key: reader.held(key) for key in data}
    assert {key for key, entry in held.items() if entry is None} == gone
    assert {key for key in values if held[key].seq != 5} == {"older"}
    assert {key for key in values if held[key].expires_at == inf} == {"for ever", "its twin"}
    assert {round(held[key].expires_at - sent_at, 6) for key in values} == {1.0, inf}
    assert reader.instance.counters.errors == 2


def compressed_twin(member, key, data):
    """The envelope with its payload compressed."""
    prefix = member.instance.facts(key)[1]
    return compressed_prefix(prefix, 1) + data[19:69] + encode_content((), zlib.compress(data[72:]))


def test_p2_tag_floors_count_for_twins_as_well(reader):
    """Redis tells a floor for what carries no tag only if it is damaged: then it counts as absent all the same."""
    flight = reader.read("a", "b")
    data = [envelope(reader, key, key, 5) for key in "ab"]
    flight.answer(read_reply(envelopes=data, tag_floors=[4, 6]))
    assert flight.result == {"a": "a"}


# --- P2: how long a value may be kept ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ttl", "local_ttl", "kept"),
    [(None, None, inf), (10.0, None, 10.0), (None, 3.0, 3.0), (10.0, 3.0, 3.0), (10.0, 30.0, 10.0)],
)
def test_p2_a21_local_entries_live_no_longer_than_what_redis_has(new_world, ttl, local_ttl, kept):
    world = new_world(local_ttl=local_ttl)
    a, b = world
    start = world.clock.now
    a.set("k", 1, ttl=ttl)
    assert a.held("k").expires_at == pytest.approx(start + kept)
    world.settle()
    world.clock.now += 2
    fill = b.read("k")  # sent now
    world.clock.now += 0.5
    fill.execute()
    world.clock.now += 0.25
    fill.finish()
    if local_ttl == kept:
        assert b.held("k").expires_at == pytest.approx(start + 2 + local_ttl)
    elif ttl is None:
        assert b.held("k").expires_at == inf
    else:
        # Redis has 7.5 seconds left when it executes the read; they count from before it was sent.
        assert b.held("k").expires_at == pytest.approx(start + 2 + 7.5)


@pytest.mark.parametrize("ttl", [0.001, 0.0014, 0.0015, 1.0004, 0.0001])
def test_p2_rounding_does_not_let_local_entries_live_longer(world, ttl):
    a, _ = world
    flight = a.store({"k": 1}, ttl=ttl)
    (request,) = flight.requests
    assert request.ttl_ms >= 1
    flight.run()
    assert a.held("k").expires_at <= world.clock.now + request.ttl_ms / 1000


def test_p2_a_value_that_never_expires_is_stored_so(world):
    a, _ = world
    flight = a.store({"k": 1}, ttl=None)
    assert flight.requests[0].ttl_ms == 0
    flight.run()


def test_without_a_local_tier_nothing_is_kept(new_world):
    world = new_world(local_enabled=False)
    a, b = world
    a.set("k", [1])
    assert b.read("k").run() == {"k": [1]}
    assert b.begin(operations.read_one, "k").run().value == [1]
    assert (a.held("k"), b.held("k")) == (None, None)
    b.instance.codec = make_codec("json")
    assert b.read("k").run() == {"k": [1]}
    flights = [a.delete("k"), a.touch("k", 1.0), a.clear(), a.invalidate("t"), a.store({"k": 1})]
    for flight in flights:
        with pytest.raises(CacheUnavailable):
            flight.fail(TIMED_OUT)
    assert a.update("k", lambda value: [*value, 2]).run() == [1, 2]
    assert a.clear().run().seq > 0
    assert b.read("k").run() == {}


# --- copies -----------------------------------------------------------------------------------------------------------


def test_callers_may_change_what_they_stored_and_got(world):
    a, b = world
    mine = ["a"]
    a.set("k", mine)
    mine.append("b")
    got = a.hit("k")
    assert got == ["a"]
    got.append("c")
    assert a.hit("k") == ["a"]
    theirs = b.read("k").run()["k"]
    theirs.append("d")
    assert b.hit("k") == ["a"]


def test_what_cannot_be_changed_is_shared(world):
    a, _ = world
    value = "x" * 100
    a.set("k", value)
    assert a.hit("k") is a.hit("k") is value


def test_without_copies_hits_share_one_object_that_is_not_the_callers(new_world):
    world = new_world(copy_values=False)
    a, _ = world
    mine = ["a"]
    a.set("k", mine)
    mine.append("b")
    assert a.hit("k") == ["a"]
    assert a.hit("k") is a.hit("k")


# --- serializers ------------------------------------------------------------------------------------------------------


def test_another_serializers_values_are_read_and_kept_in_ones_own(world):
    a, b = world
    b.instance.codec = make_codec("json")
    a.set("k", {"n": 1})
    b.settle()
    assert b.get("k") == b.hit("k") == {"n": 1}
    assert json.loads(b.held("k").value) == {"n": 1}


def test_a_value_that_this_serializer_could_not_store_is_returned_and_not_kept(world):
    a, b = world
    b.instance.codec = make_codec("json")
    a.store({"k": b"bytes", "x": 1}).run()
    b.settle()
    assert b.read("k", "x").run() == {"k": b"bytes", "x": 1}
    assert (b.hit("k"), b.hit("x")) == (ABSENT, 1)


def test_a_value_that_is_returned_and_not_kept_is_knowledge(world):
    a, b = world
    b.set("k", "old")
    b.instance.codec = make_codec("json")
    world.settle()
    b.get("k")
    slow = b.read("k").execute()
    a.set("k", b"bytes")
    assert b.read("k").run()["k"] == b"bytes"
    slow.run()
    assert b.hit("k") is ABSENT


def test_a_value_that_cannot_be_decoded_names_its_key(reader):
    stored = envelope(reader, "k", 1, 5, codec=make_codec(SimpleNamespace(dumps=lambda _: b"?", loads=bytes)))
    with pytest.raises(SerializationError, match="custom serializer") as caught:
        answered(reader, "k", stored)
    assert caught.value.key == "k"
    assert "key 'k'" in str(caught.value)


def test_a_damaged_payload_names_its_key(reader):
    with pytest.raises(SerializationError) as caught:
        answered(reader, "k", envelope(reader, "k", 1, 5)[:-1] + b"\xc1")
    assert caught.value.key == "k"


def test_i18_a_value_that_cannot_be_encoded_is_refused_before_anything_is_sent(world):
    a, _ = world
    a.set("k", 1)
    with pytest.raises(SerializationError) as caught:
        a.store({"x": 1, "k": object()})
    assert caught.value.key == "k"
    assert a.hit("k") == 1


def test_a_value_that_cannot_be_decoded_again_is_refused_before_anything_is_sent(new_world):
    """Decoding is how a shared local value is made: later than the write it would leave the old one in place."""
    world = new_world(copy_values=False)
    a, _ = world
    a.set("k", "old")
    a.settle()
    a.instance.codec = make_codec(SimpleNamespace(dumps=lambda _: b"x", loads=lambda data: data.index(b"y")))
    with pytest.raises(SerializationError):
        a.store({"k": "new"})
    assert world.server.live("k").seq == 1


def test_contract_3_what_a_write_keeps_is_what_a_read_would_give(new_world):
    """A serializer of the user's own need not be exact: json makes lists of tuples."""
    world = new_world(serializer=SimpleNamespace(dumps=lambda value: json.dumps(value).encode(), loads=json.loads))
    a, b = world
    a.set("k", (1, 2))
    b.settle()
    assert b.get("k") == [1, 2]
    assert a.get("k") == [1, 2]


def test_a_value_too_large_is_refused_before_anything_is_sent(new_world):
    world = new_world(max_value_bytes=10)
    a, _ = world
    a.set("k", "x" * 8)
    with pytest.raises(ValueTooLarge) as caught:
        a.store({"small": 1, "k": "x" * 100})
    assert (caught.value.key, caught.value.limit) == ("k", 10)
    assert a.hit("k") == "x" * 8


# --- compression and schema -------------------------------------------------------------------------------------------


def compressing(member):
    member.instance.codec = replace(member.instance.codec, compressor=make_compressor("zlib"))


def test_large_values_are_stored_compressed_and_kept_as_they_were(new_world):
    world = new_world(compress_above=100)
    a, b = world
    compressing(a)
    a.store({"large": "x" * 1000, "bound": "x" * 97}).run()
    assert len(world.server.live("large").payload) < 100 == len(world.server.live("bound").payload) + 1
    b.settle()
    assert b.read("large", "bound").run().keys() == {"large", "bound"}
    for member in (a, b):
        assert member.hit("large") == "x" * 1000
        assert member.held("large").size > 1000


def test_what_compression_would_make_larger_is_stored_as_it_is(new_world):
    world = new_world(compress_above=0)
    a, _ = world
    compressing(a)
    a.set("k", b"\x01\x02\x03")
    assert world.server.live("k").payload == make_codec("msgpack").dumps(b"\x01\x02\x03")


def test_a_compressed_value_of_another_codec_is_kept_in_ones_own(world):
    a, b = world
    compressing(a)
    a.set("k", ["again and again"] * 100)
    b.instance.codec = make_codec("json")
    b.settle()
    assert b.get("k") == b.hit("k") == ["again and again"] * 100
    assert json.loads(b.held("k").value) == ["again and again"] * 100


def test_without_a_local_tier_nothing_is_encoded_again(new_world):
    world = new_world(local_enabled=False)
    a, b = world
    compressing(a)
    b.instance.codec = make_codec("json")
    a.store({"large": [1] * 2000, "small": [1]}).run()
    assert b.read("large", "small").run() == {"large": [1] * 2000, "small": [1]}


def test_nothing_is_decompressed_beyond_the_limit(new_world):
    world = new_world(max_value_bytes=10_000)
    a, b = world
    compressing(a)
    a.set("k", "x" * 9_000)
    b.instance.settings = replace(b.instance.settings, max_value_bytes=8_000)
    b.settle()
    with pytest.raises(SerializationError, match=r"max_value_bytes allows \(8,000\)") as caught:
        b.read("k").run()
    assert caught.value.key == "k"


@pytest.mark.parametrize("schema", [1, 65_535])
def test_a_value_of_another_schema_is_an_absence(world, schema):
    a, b = world
    a.set("k", "mine")
    b.settle()
    slow = b.read("k").execute()
    other = encode_envelope(
        envelope_prefix(key_digest(b"k"), 1, schema), EPOCH, 2, 0, encode_content((), make_codec("msgpack").dumps("o"))
    )
    assert answered(b, "k", other, seq=2) is ABSENT
    # An absence at clock 2 is newer than what was read before it.
    slow.run()
    assert b.hit("k") is ABSENT


# --- foreign values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"raw", "not an envelope"), (None, "not an envelope"), (b"\xc1\x01", "truncated")],
    ids=["another program's", "no string", "damaged"],
)
@pytest.mark.parametrize("policy", ["raise", "miss"])
def test_p2_foreign_bytes_are_reported_and_never_decoded(new_world, data, reason, policy):
    world = new_world(on_foreign=policy)
    a, _ = world
    a.set("k", "ours")
    a.settle()
    world.server.foreign("k", data)
    flight = a.read("k", "x") if data is not None else a.read("k")
    if policy == "raise":
        with pytest.raises(ForeignValue, match=reason) as caught:
            flight.run()
        assert caught.value.key == "k"
    else:
        assert flight.run() == {}
        assert a.held("k") is None  # whatever it is, it is not what is held here
    (event,) = a.events_of(ForeignValueSeen)
    assert (event.key, reason in event.reason) == ("k", True)
    assert a.instance.counters.errors == 1


@pytest.mark.parametrize("policy", ["raise", "miss"])
def test_p2_a_newer_releases_value_is_a_miss_that_is_told_once_a_minute(new_world, policy):
    world = new_world(on_foreign=policy)
    a, _ = world
    a.set("k", "ours")
    a.settle()
    world.server.foreign("k", b"\xc1\x02...")
    assert a.read("k").run() is None or a.read("k").run() == {}
    assert a.read("k", "x").run() == {}
    assert a.held("k") is None
    (event,) = a.events_of(UnknownFormatSeen)
    assert (event.what, event.count) == ("value", 1)
    assert "format 2" in event.reason
    assert a.events_of(ForeignValueSeen) == []


def test_p2_what_is_no_string_is_absent_among_several(world):
    """MGET does not tell it apart."""
    a, _ = world
    a.set("k", "ours")
    world.server.foreign("k", None)
    assert a.read("k", "x").run() == {}
    assert a.held("k") is None


def test_a25_another_keys_envelope_is_foreign(reader):
    with pytest.raises(ForeignValue, match="another key"):
        answered(reader, "k", envelope(reader, "other", "v", 5))


@pytest.mark.parametrize("policy", ["raise", "miss"])
@pytest.mark.parametrize("operation", ["store", "delete", "touch"])
def test_a_write_that_would_have_to_judge_foreign_bytes_is_refused(new_world, policy, operation):
    world = new_world(on_foreign=policy)
    a, _ = world
    world.server.foreign("k", b"raw")
    flight = {
        "store": lambda: a.store({"k": 1}, condition=Condition()),
        "delete": lambda: a.delete("k", condition=Condition(EPOCH, 1)),
        "touch": lambda: a.touch("k", 1.0),
    }[operation]()
    with pytest.raises(ForeignValue):
        flight.run()
    assert world.server.shards[0].values["k"] == (b"raw", 0)
    assert len(a.events_of(ForeignValueSeen)) == 1


@pytest.mark.parametrize("operation", ["store", "delete"])
def test_an_unconditional_write_replaces_foreign_bytes(world, operation):
    a, _ = world
    world.server.foreign("k", b"raw")
    if operation == "store":
        a.set("k", 1)
        assert a.get("k") == 1
    else:
        assert a.delete("k").run() == 1
        assert a.get("k") is ABSENT


# --- storing ----------------------------------------------------------------------------------------------------------


def test_p1_a_store_keeps_what_redis_confirmed(world):
    a, b = world
    flight = a.store({"k": 1, "x": 2}, tags=("t", "t", "u"))
    assert a.hit("k") is ABSENT  # I18: nothing before the confirmation
    assert [type(request) for request in flight.requests] == [StoreRequest]
    versions = flight.run()
    assert versions["k"] == versions["x"] == Version(a.shard.epoch, 1)
    assert (a.hit("k"), a.hit("x")) == (1, 2)
    assert a.held("k").tags == ("t", "u")
    a.settle()
    assert a.hit("k") == 1
    assert b.get("k") == 1


def test_a_store_of_nothing_asks_nothing(world):
    a, _ = world
    assert a.store({}).result == {}
    assert a.delete().result == 0


@pytest.mark.parametrize("tags", ["tag", ("",), (1,)])
def test_tags_that_are_none_are_refused_before_anything_is_sent(world, tags):
    a, _ = world
    with pytest.raises(ConfigError):
        a.store({"k": 1}, tags=tags)
    with pytest.raises(ConfigError):
        a.update("k", str, tags=tags)
    with pytest.raises(ConfigError):
        a.begin(operations.raise_floor, Kind.TAG, tags)


def test_p10_a_tag_invalidation_without_tags_is_refused(world):
    """Redis would take it for a clear, and peers for nothing."""
    a, _ = world
    with pytest.raises(ConfigError):
        a.invalidate()


def test_bulk_writes_go_in_pieces_one_after_the_other(world):
    a, _ = world
    keys = [f"k{number}" for number in range(MAX_KEYS_PER_SCRIPT + 1)]
    for flight in (a.store(dict.fromkeys(keys, 0)), a.delete(*keys)):
        assert [len(request.keys) for request in flight.requests] == [MAX_KEYS_PER_SCRIPT]
        flight.execute().finish()
        assert [request.keys for request in flight.requests] == [(keys[-1],)]
        flight.execute().finish()
        assert flight.done


def test_bulk_stores_go_in_pieces_of_so_many_bytes(new_world):
    world = new_world(max_value_bytes=MAX_BYTES_PER_SCRIPT)
    a, _ = world
    half = b"x" * (MAX_BYTES_PER_SCRIPT // 2 - 100)
    flight = a.store({"a": half, "b": half, "c": half, "d": b"x" * (MAX_BYTES_PER_SCRIPT - 100), "e": b""})
    pieces = []
    while not flight.done:
        pieces += [request.keys for request in flight.requests]
        flight.finish()
    assert pieces == [("a", "b"), ("c",), ("d", "e")]


def test_bulk_writes_go_to_each_shard_under_its_own_version(new_world):
    world = new_world(shards=3)
    a, _ = world
    keys = [f"k{number}" for number in range(30)]
    flight = a.store(dict.fromkeys(keys, 1))
    shards = []
    while not flight.done:
        shards += [request.shard for request in flight.requests]
        flight.finish()
    assert sorted(shards) == [0, 1, 2]
    assert {version.epoch for version in flight.result.values()} == {shard.epoch for shard in a.instance.shards}
    assert a.delete(*keys, "nothing").run() == 30


@pytest.mark.parametrize("error", [REFUSED, TIMED_OUT], ids=["refused", "timed out"])
@pytest.mark.parametrize("operation", ["store", "delete"])
def test_a_bulk_write_that_fails_half_way_tells_what_was_done(world, operation, error):
    a, _ = world
    keys = [f"k{number}" for number in range(MAX_KEYS_PER_SCRIPT + 2)]
    a.store(dict.fromkeys(keys, "old")).run()
    world.settle()
    flight = a.store(dict.fromkeys(keys, "new")) if operation == "store" else a.delete(*keys)
    flight.execute().finish()
    with pytest.raises(CacheUnavailable) as caught:
        flight.fail(error)
    assert caught.value.applied_keys == tuple(keys[:MAX_KEYS_PER_SCRIPT])
    assert a.hit(keys[0]) == ("new" if operation == "store" else ABSENT)
    assert a.hit(keys[-1]) == (ABSENT if error.maybe_applied else "old")


# --- I8, I18, A8: writes that fail ------------------------------------------------------------------------------------


def every_write(member, key="k"):
    return {
        "store": lambda: member.store({key: "new"}),
        "delete": lambda: member.delete(key),
        "touch": lambda: member.touch(key, 9.0),
        "clear": member.clear,
        "invalidate": lambda: member.invalidate("tag"),
    }


WRITES = ["store", "delete", "touch", "clear", "invalidate"]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("error", [REFUSED, NamespaceMismatch("n", "1/2", "1/1")], ids=["refused", "mismatch"])
def test_i8_i18_a_write_that_redis_refused_is_an_error_and_changes_nothing(world, write, error):
    a, b = world
    b.store({"k": "old", "filling": "old"}, tags=("tag",)).run()
    world.settle()
    assert a.get("k") == "old"
    fill = a.read("filling").execute()
    flight = every_write(a)[write]()
    with pytest.raises(type(error)):
        flight.fail(error)
    if isinstance(error, CacheUnavailable) or write not in {"clear", "invalidate"}:
        assert a.hit("k") == "old"
        fill.run()
        assert a.hit("filling") == "old"
    else:
        fill.close()


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(
    "error", [TIMED_OUT, KeyboardInterrupt(), ValueError("a reply that is none")], ids=["timed out", "interrupt", "bug"]
)
@pytest.mark.parametrize("happened", ["never", "executed", "later"])
def test_a8_a_write_without_an_answer_is_newer_than_anything(world, write, error, happened):
    a, b = world
    b.store({"k": "old", "x": "old"}, tags=("tag",)).run()
    world.settle()
    assert a.get("k") == a.get("x") == "old"
    fill = a.read("k").execute()
    bulk = a.read("k", "x").execute()
    flight = every_write(a)[write]()
    if happened == "executed":
        flight.execute()
    requests = flight.requests
    with pytest.raises(type(error)):
        flight.fail(error)
    assert a.hit("k") is ABSENT
    assert a.hit("x") == (ABSENT if write in {"clear", "invalidate"} else "old")
    fill.run()
    bulk.run()
    assert a.held("k") is None
    if happened == "later":
        a.get("k")  # a new read: what it finds is current
        world.server.execute(requests)
        a.settle()
    expected = {"store": "new", "touch": "old"}.get(write, ABSENT) if happened != "never" else "old"
    assert a.get("k") == expected


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("executed", [True, False])
def test_a25_a_write_that_is_abandoned_is_newer_than_anything(world, write, executed):
    a, b = world
    b.store({"k": "old"}, tags=("tag",)).run()
    world.settle()
    assert a.get("k") == "old"
    fill = a.read("k").execute()
    flight = every_write(a)[write]()
    if executed:
        flight.execute()
    flight.close()
    fill.run()
    assert a.hit("k") is ABSENT


def test_a8_a_failed_floor_leaves_shards_that_were_done(new_world):
    world = new_world(shards=2)
    a, _ = world
    keys = [f"k{number}" for number in range(20)]
    a.store(dict.fromkeys(keys, 1)).run()
    world.settle()
    flight = a.clear()
    flight.execute().finish()
    with pytest.raises(CacheUnavailable):
        flight.fail(REFUSED)
    assert {a.instance.shard_of(key.encode()).index for key in keys if a.hit(key) == 1} == {1}


def test_a_read_that_fails_changes_nothing(world):
    a, _ = world
    a.set("k", 1)
    for error in (TIMED_OUT, KeyboardInterrupt()):
        with pytest.raises(type(error)):
            a.read("k").fail(error)
    assert a.hit("k") == 1


# --- conditions -------------------------------------------------------------------------------------------------------


def test_compare_and_set(world):
    a, _ = world
    first = a.set("k", 1)
    second = a.store({"k": 2}, condition=Condition(first.epoch, first.seq)).run()["k"]
    assert second > first
    assert a.hit("k") == 2
    assert a.store({"new": 1}, condition=Condition()).run()
    assert a.delete("k", condition=Condition(second.epoch, second.seq)).run() == 1
    assert a.get("k") is ABSENT


@pytest.mark.parametrize("operation", ["store", "delete"])
def test_i18_a_conflict_writes_nothing_and_is_knowledge(world, operation):
    a, b = world
    mine = a.set("k", "old")
    world.settle()
    theirs = b.set("k", "new")
    fill = a.read("x", "k")
    fill.requests  # noqa: B018 - under way since before, executed by nobody yet
    condition = Condition(mine.epoch, mine.seq)
    flight = a.store({"k": "mine"}, condition=condition) if operation == "store" else a.delete("k", condition=condition)
    with pytest.raises(VersionConflict) as caught:
        flight.run()
    assert (caught.value.key, caught.value.expected, caught.value.current) == ("k", mine, theirs)
    assert a.hit("k") is ABSENT  # the message has not come, but the refusal said that there is something newer
    fill.run()
    assert a.hit("k") == "new"


def test_a_conflict_with_an_absence_is_knowledge(world):
    a, b = world
    mine = a.set("k", "old")
    world.settle()
    slow = a.read("k").execute()
    b.delete("k").run()
    with pytest.raises(VersionConflict) as caught:
        a.store({"k": "mine"}, condition=Condition(mine.epoch, mine.seq)).run()
    assert caught.value.current is None
    assert a.hit("k") is ABSENT
    slow.run()
    assert a.hit("k") is ABSENT


def test_a_conflict_with_a_presence(world):
    a, b = world
    theirs = b.set("k", 1)
    with pytest.raises(VersionConflict) as caught:
        a.store({"k": 2}, condition=Condition()).run()
    assert (caught.value.expected, caught.value.current) == (None, theirs)


# --- deleting and touching --------------------------------------------------------------------------------------------


def test_a_delete_tells_how_many_there_were(world):
    a, b = world
    b.store({"k": 1, "x": 2}).run()
    world.settle()
    a.read("k", "x").run()
    flight = a.delete("k", "x", "nothing", "k")
    assert flight.requests == (DeleteRequest(0, ("k", "x", "nothing")),)
    assert flight.run() == 2
    assert (a.hit("k"), a.hit("x")) == (ABSENT, ABSENT)
    b.settle()
    assert (b.hit("k"), b.get("x")) == (ABSENT, ABSENT)


@pytest.mark.parametrize(("ttl", "ttl_ms"), [(None, 0), (1.5, 1500), (0.0001, 1)])
def test_a_touch_gives_another_time_to_live(world, ttl, ttl_ms):
    a, b = world
    before = a.set("k", 1, ttl=5.0)
    world.settle()
    b.get("k")
    flight = a.touch("k", ttl)
    assert flight.requests == (TouchRequest(0, "k", ttl_ms),)
    assert flight.run() is True
    assert a.held("k") is None  # a shorter time must not be outlived (A21)
    b.settle()
    assert b.held("k") is None
    assert world.server.live("k").seq == before.seq + 1
    assert world.server.live("k").expires_ms == (world.clock.us // 1000 + ttl_ms if ttl_ms else 0)


def test_a_touch_of_nothing_is_knowledge(world):
    a, b = world
    a.set("k", 1)
    world.settle()
    slow = a.read("k").execute()
    b.delete("k").run()
    assert a.touch("k", 1.0).run() is False
    assert a.hit("k") is ABSENT
    slow.run()
    assert a.hit("k") is ABSENT


# --- floors -----------------------------------------------------------------------------------------------------------


def test_p10_a_clear_goes_to_every_shard(new_world):
    world = new_world(shards=3)
    a, b = world
    keys = [f"k{number}" for number in range(12)]
    a.store(dict.fromkeys(keys, 1)).run()
    world.settle()
    b.read(*keys).run()
    flight = a.clear()
    asked = []
    while not flight.done:
        asked += flight.requests
        flight.finish()
    assert asked == [FloorRequest(index, Kind.CLEAR) for index in range(3)]
    assert flight.result == Version(a.instance.shards[2].epoch, world.server.shards[2].seq)
    assert all(a.hit(key) is ABSENT for key in keys)
    b.settle()
    assert all(b.get(key) is ABSENT for key in keys)


def test_p10_a_tag_invalidation_makes_absent_what_carries_the_tag(world):
    a, b = world
    a.store({"red": 1}, tags=("red",)).run()
    a.store({"both": 2}, tags=("blue", "red")).run()
    a.store({"plain": 3}).run()
    world.settle()
    b.read("red", "both", "plain").run()
    flight = a.invalidate("red", "red", "green")
    assert flight.requests == (FloorRequest(0, Kind.TAG, ("red", "green")),)
    version = flight.run()
    assert version == Version(a.shard.epoch, world.server.shards[0].seq)
    assert (a.hit("red"), a.hit("both"), a.hit("plain")) == (ABSENT, ABSENT, 3)
    b.settle()
    assert (b.get("red"), b.get("both"), b.hit("plain")) == (ABSENT, ABSENT, 3)
    a.store({"red": 4}, tags=("red",)).run()
    b.settle()
    assert b.get("red") == 4


# --- update -----------------------------------------------------------------------------------------------------------


def test_update_changes_what_is_there(world):
    a, b = world
    b.set("k", 1)
    assert a.update("k", lambda value: value + 1, tags=("t",)).run() == 2
    assert a.hit("k") == 2
    assert a.held("k").tags == ("t",)
    assert a.update("x", lambda value: value + 1, default=10).run() == 11


def test_update_has_the_front_await_what_is_awaitable(world):
    a, b = world
    b.set("k", 1)

    async def increment(value):
        return value + 1

    update = a.update("k", increment).finish()
    (request,) = update.requests
    assert isinstance(request, LoadRequest)
    assert (request.leases, request.flights) == ((), ())
    with pytest.raises(StopIteration) as stop:
        request.load().send(None)
    update.answer(Loaded(stop.value.value))
    assert update.run() == 2
    assert a.hit("k") == 2


def test_update_tries_again_if_another_was_faster(world):
    a, b = world
    b.set("k", 1)
    seen = []

    def change(value):
        seen.append(value)
        return value + 1

    flight = a.update("k", change)
    flight.execute().finish()
    b.set("k", 10)
    assert flight.run() == 11
    assert seen == [1, 10]


def test_update_gives_up_if_others_are_faster_each_time(world):
    a, b = world
    flight = a.update("k", lambda _: "mine", attempts=2)
    for number in range(2):
        flight.execute().finish()
        b.set("k", number)
        if number == 0:
            flight.finish()
    with pytest.raises(VersionConflict):
        flight.finish()
    assert a.get("k") == 1


def test_update_deletes_what_becomes_missing(world):
    a, b = world
    b.set("k", 1)
    assert a.update("k", lambda _: MISSING).run() is MISSING
    assert b.get("k") == 1  # not told yet
    b.settle()
    assert b.get("k") is ABSENT
    flight = a.update("k", lambda _: MISSING)
    flight.execute().finish()
    assert (flight.done, flight.result) == (True, MISSING)  # nothing there: nothing to write


def test_update_tries_again_if_a_delete_came_too_late(world):
    a, b = world
    b.set("k", 1)
    flight = a.update("k", lambda value: MISSING if value == 1 else value)
    flight.execute().finish()
    b.set("k", 2)
    assert flight.run() == 2


def test_update_of_an_absence_notices_a_history_that_was_lost_since(world):
    """Absent, then written, then all lost and begun anew: absent again, but not the absence that was read."""
    a, b = world
    b.set("x", 1)
    seen = []
    flight = a.update("k", lambda value: seen.append(value) or "mine")
    flight.execute().finish()
    world.server.flushall()
    b.set("y", 1)
    assert flight.run() == "mine"
    assert len(seen) == 2


def test_update_without_attempts_is_a_mistake(world):
    a, _ = world
    with pytest.raises(AssertionError):
        a.update("k", str, attempts=0)


# --- tokens never leak ------------------------------------------------------------------------------------------------

MANY = [f"k{number}" for number in range(MAX_KEYS_PER_SCRIPT + 1)]

OPERATIONS = {
    "read one": lambda member: member.begin(operations.read_one, "k"),
    "read": lambda member: member.read("k", "x"),
    "read, tags in doubt": lambda member: member.read("tagged", "k"),
    "read many": lambda member: member.read(*MANY),
    "store": lambda member: member.store({"k": 1}),
    "store many": lambda member: member.store(dict.fromkeys(MANY, 1)),
    "store, conflict": lambda member: member.store({"k": 1}, condition=Condition()),
    "delete": lambda member: member.delete("k"),
    "delete many": lambda member: member.delete(*MANY),
    "touch": lambda member: member.touch("k", 1.0),
    "clear": lambda member: member.clear(),
    "invalidate": lambda member: member.invalidate("tag"),
    "update": lambda member: member.update("k", lambda value: value),
    "update, deletes": lambda member: member.update("k", lambda _: MISSING),
    "update, fails": lambda member: member.update("k", lambda value: value.nothing),
}

ENDINGS = {
    "refused": lambda flight: flight.fail(REFUSED),
    "timed out": lambda flight: flight.fail(TIMED_OUT),
    "mismatch": lambda flight: flight.fail(NamespaceMismatch("n", "1/2", "1/1")),
    "interrupted": lambda flight: flight.fail(KeyboardInterrupt()),
    "closed": lambda flight: flight.close(),
    "no reply": lambda flight: flight.answer(),
    "another reply": lambda flight: flight.answer(*[object() for _ in flight.requests]),
    "another epoch's reply": lambda flight: flight.answer(*map(strange_reply, flight.requests)),
}


def strange_reply(request):
    if isinstance(request, ReadRequest):
        return read_reply(epoch=OTHER_EPOCH, envelopes=[b"foreign"] * len(request.keys))
    return write_reply(1, epoch=OTHER_EPOCH, existed=[True])


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("shards", [1, 3])
def test_p7_no_way_out_leaves_a_token_behind(new_world, operation, ending, shards):
    """After every step, ended in every way: at the first request, the second, and so on until it ends by itself."""
    world = new_world(shards=shards, members="a")
    (a,) = world
    a.store({"tagged": 1}, tags=("blue",)).run()
    a.invalidate("red").run()
    steps = 0
    ended = False
    while not ended:
        a.set("k", 1)
        a.settle()
        flight = OPERATIONS[operation](a)
        for _ in range(steps):
            try:
                flight.finish()
            except (VersionConflict, AttributeError):
                assert flight.done
        ended = flight.done
        if not ended:
            assert a.tokens() or operation in {"clear", "invalidate"}
            with suppress(BaseException):  # whatever it is: a replaced request, an error of the ending
                ENDINGS[ending](flight)
            flight.close()
        assert a.tokens() == 0
        steps += 1
    assert steps >= 2


def test_a_group_of_nothing_has_no_pieces():
    assert list(operations.in_chunks([], 10)) == list(operations.in_chunks([], 10, len)) == []


def test_p7_a_token_is_released_if_a_later_one_cannot_be_made(new_world, monkeypatch):
    world = new_world(shards=2)
    a, _ = world
    register = a.instance.shards[1].register

    def fail(_):
        raise MemoryError

    keys = [f"k{number}" for number in range(20)]
    monkeypatch.setattr(type(a.shard), "register", lambda shard, keys: register(keys) if shard.index else fail(keys))
    with pytest.raises(MemoryError):
        a.read(*sorted(keys, key=lambda key: -a.instance.shard_of(key.encode()).index))
    assert a.tokens() == 0


# --- contract ---------------------------------------------------------------------------------------------------------


def test_contract_2_a_hit_is_never_older_than_the_bound(world):
    """Nothing comes through any more, nobody notices: the bound ends it."""
    a, b = world
    a.set("k", "old")
    world.settle()
    world.clock.now += 3
    world.server.links.remove(a.link)
    b.set("k", "new")
    written = world.clock.now
    while a.hit("k") == "old":
        assert world.clock.now <= written + MAX_STALENESS
        world.clock.now += 0.5
    assert a.get("k") == "new"


def test_missing_is_one_object():
    assert repr(MISSING) == "MISSING"
    assert copy.deepcopy(MISSING) is pickle.loads(pickle.dumps(MISSING)) is MISSING
