"""Following a shard from outside: what is handed on, what is told to be missing, and when the log has to be asked."""

from __future__ import annotations

import pytest

from coherent_cache.core.tailing import Clock, Filter, Gap, GapCause, LogEntry, Shown, Trail
from coherent_cache.wire import Kind, encode_message
from tests.unit.core.model import EPOCH, OTHER_EPOCH, message, nonce

NOW = 1_000_000


def clock(seq, *, epoch=EPOCH, history=b"n", time_us=NOW):
    return Clock(epoch, seq, nonce(seq, history), time_us)


def write(seq, *names, kind=Kind.SET, time_us=0, **options):
    return message(kind, seq, *(names or (f"k{seq}",)), time_us=time_us or seq, **options)


def log(*messages):
    return [LogEntry(each.seq, encode_message(each)) for each in messages]


def at(seq, **options):
    """A trail that has come to this version."""
    trail = Trail(0)
    trail.start(clock(seq, **options))
    return trail


def hear(trail, *messages):
    return [trail.hear(encode_message(each)) for each in messages]


def live(*messages):
    return [[Shown(0, each, replayed=False)] for each in messages]


def replayed(*messages):
    return [Shown(0, each, replayed=True) for each in messages]


# -- live --------------------------------------------------------------------------------------------------------------


def test_messages_in_their_order_are_handed_on():
    trail = at(10)
    new = [write(11, time_us=2 * NOW), write(12, time_us=2 * NOW)]
    assert hear(trail, *new) == live(*new)
    assert (trail.seq, trail.nonce) == (12, nonce(12))


@pytest.mark.parametrize(
    "odd",
    [
        write(13, time_us=2 * NOW), write(11, history=b"x", time_us=2 * NOW), write(10, time_us=2 * NOW),
        write(9, time_us=2 * NOW), write(11, epoch=OTHER_EPOCH), write(1, epoch=OTHER_EPOCH),
    ],
    ids=["later", "another predecessor", "repeated", "step back", "another epoch", "another epoch's first"],
)  # fmt: skip
def test_whatever_does_not_continue_asks_for_the_log(odd):
    trail = at(10)
    assert hear(trail, odd) == [None]
    assert (trail.epoch, trail.seq) == (EPOCH, 10)


def test_bytes_that_are_no_message_ask_for_the_log():
    assert at(10).hear(b"\x01damaged") is None


def test_a_shard_that_has_no_history_asks_for_the_log_first():
    assert hear(Trail(0), write(1)) == [None]


def test_what_the_log_had_is_not_handed_on_again():
    trail = at(10)
    new = [write(11), write(12)]
    assert trail.read(clock(12), log(write(10), *new), more=False) == replayed(*new)
    assert hear(trail, *new, write(13, time_us=2 * NOW)) == [[], [], *live(write(13, time_us=2 * NOW))]


# -- from the log ------------------------------------------------------------------------------------------------------


def test_the_log_is_replayed_from_the_position_on():
    trail = at(10)
    assert trail.read(clock(12), log(write(10), write(11), write(12)), more=False) == replayed(write(11), write(12))
    assert not trail.reads_on(clock(12), more=False)


def test_nothing_new():
    trail = at(10)
    assert trail.read(clock(10), log(write(10)), more=False) == []
    assert trail.read(clock(10), [], more=False) == [], "the log itself may be gone"


def test_a_log_in_pieces():
    trail = at(10)
    assert trail.read(clock(13), log(write(10), write(11)), more=True) == replayed(write(11))
    assert trail.reads_on(clock(13), more=True)
    assert trail.read(clock(13), log(write(11), write(12), write(13)), more=False) == replayed(write(12), write(13))
    assert not trail.reads_on(clock(13), more=False)


def test_what_was_cut_off_the_log_is_counted():
    trail = at(10)
    assert trail.read(clock(21), log(write(20), write(21)), more=False) == [
        Gap(0, GapCause.LOG, 9, 10, 20, NOW), *replayed(write(20), write(21)),
    ]  # fmt: skip


def test_a_log_that_lacks_its_end_is_counted_up_to_the_clock():
    trail = at(10)
    assert trail.read(clock(15), [], more=False) == [Gap(0, GapCause.LOG, 5, 10, None, NOW)]
    assert hear(trail, write(16, time_us=2 * NOW)) == live(write(16, time_us=2 * NOW))


def test_a_hole_inside_the_log_is_counted():
    trail = at(10)
    assert trail.read(clock(14), log(write(11), write(14)), more=False) == [
        *replayed(write(11)), Gap(0, GapCause.LOG, 2, 11, 14, NOW), *replayed(write(14)),
    ]  # fmt: skip


def test_what_is_written_while_the_log_is_read_is_replayed_too():
    trail = at(10)
    assert trail.read(clock(11), log(write(10), write(11), write(12)), more=False) == replayed(write(11), write(12))
    assert trail.seq == 12


@pytest.mark.parametrize(
    "entry",
    [LogEntry(11, b"damaged"), LogEntry(11, b"\x09newer"), *log(write(11, epoch=OTHER_EPOCH))],
    ids=["damaged", "newer release", "another history's"],
)
def test_an_entry_that_cannot_be_understood_is_a_gap_of_one(entry):
    trail = at(10)
    assert trail.read(clock(12), [*log(write(10)), entry, *log(write(12))], more=False) == [
        Gap(0, GapCause.DAMAGED, 1, 10, 12, NOW), *replayed(write(12)),
    ]  # fmt: skip


def test_a_damaged_entry_after_a_hole_tells_both():
    trail = at(10)
    found = trail.read(clock(14), [LogEntry(13, b"damaged"), *log(write(14))], more=False)
    assert [(gap.cause, gap.missed) for gap in found[:2]] == [(GapCause.LOG, 2), (GapCause.DAMAGED, 1)]
    assert found[2:] == replayed(write(14))


def test_an_old_damaged_entry_is_none_of_our_business():
    trail = at(10)
    assert trail.read(clock(11), [LogEntry(10, b"damaged"), *log(write(11))], more=False) == replayed(write(11))


# -- other histories ---------------------------------------------------------------------------------------------------


def test_a_lost_history_is_told_and_the_new_one_read_from_its_beginning():
    trail = at(10)
    new = [write(1, epoch=OTHER_EPOCH), write(2, epoch=OTHER_EPOCH)]
    first = message(Kind.SET, 1, "k1", epoch=OTHER_EPOCH, time_us=1)._replace(previous=OTHER_EPOCH[:8])
    there = clock(2, epoch=OTHER_EPOCH)
    assert trail.read(there, [], more=False) == [Gap(0, GapCause.HISTORY, None, 10, None, NOW)]
    assert trail.reads_on(there, more=False)
    assert trail.read(there, log(first, new[1]), more=False) == replayed(first, new[1])


def test_a_new_history_without_a_write_is_told_once():
    trail = at(10)
    there = Clock(OTHER_EPOCH, 0, OTHER_EPOCH[:8], NOW)
    assert len(trail.read(there, [], more=False)) == 1
    assert not trail.reads_on(there, more=False)
    assert trail.read(there, [], more=False) == []


def test_the_first_history_of_a_shard_is_no_gap():
    trail = Trail(0)
    there = clock(1)
    assert trail.read(Clock(None, 0, b"", NOW), [], more=False) == []
    assert not trail.reads_on(Clock(None, 0, b"", NOW), more=False)
    assert trail.read(there, [], more=False) == []
    assert trail.reads_on(there, more=False)
    first = write(1)._replace(previous=EPOCH[:8])
    assert trail.read(there, log(first), more=False) == replayed(first)


def test_a_history_that_is_gone_waits_for_the_next_one():
    trail = at(10)
    assert trail.read(Clock(None, 0, b"", NOW), [], more=False) == []
    assert trail.seq == 10


def test_a_clock_that_went_back_is_a_fork():
    trail = at(10)
    assert trail.read(clock(8), log(), more=False) == [Gap(0, GapCause.FORK, None, 10, None, NOW)]
    assert hear(trail, write(9, time_us=2 * NOW)) == live(write(9, time_us=2 * NOW))


def test_the_same_number_with_another_nonce_is_a_fork():
    trail = at(10)
    assert trail.read(clock(10, history=b"x"), log(write(10, history=b"x")), more=False) == [
        Gap(0, GapCause.FORK, None, 10, None, NOW)
    ]
    assert trail.read(clock(10, history=b"x"), [], more=False) == [], "told once"


def test_a_log_of_another_branch_is_a_fork_and_replayed():
    trail = at(10)
    branch = [write(seq, history=b"x") for seq in (10, 11, 12)]
    assert trail.read(clock(12, history=b"x"), log(*branch), more=False) == [
        Gap(0, GapCause.FORK, None, 10, None, NOW), *replayed(*branch[1:]),
    ]  # fmt: skip


def test_a_fork_is_seen_by_the_predecessor_where_the_log_begins_later():
    trail = at(10)
    branch = write(11, history=b"x")
    assert trail.read(clock(11, history=b"x"), log(branch), more=False) == [
        Gap(0, GapCause.FORK, None, 10, 11, 11), *replayed(branch),
    ]  # fmt: skip


def test_beginning_before_a_message_of_the_log():
    trail = at(12)
    trail.start_before(write(11))
    assert trail.read(clock(12), log(write(10), write(11), write(12)), more=False) == replayed(write(11), write(12))


def test_records_tell_when_they_happened():
    assert Shown(0, write(11, time_us=7), replayed=True).time_us == 7


# -- filters -----------------------------------------------------------------------------------------------------------

SET = write(1, "user:7", "user:8", origin="worker-1")
OTHER = write(2, "page:7", origin="worker-2")
TAG = write(3, "red", "blue", kind=Kind.TAG, origin="worker-2")
CLEAR = message(Kind.CLEAR, 4, origin="admin")
DELETE = write(5, "user:7", kind=Kind.DELETE, origin="worker-1")
ALL = [SET, OTHER, TAG, CLEAR, DELETE]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, ALL),
        ({"keys": ["user:*"]}, [SET, CLEAR, DELETE]),
        ({"keys": ["user:8"]}, [SET, CLEAR]),
        ({"keys": ["user:?", "page:*"]}, [SET, OTHER, CLEAR, DELETE]),
        ({"keys": ["user"]}, [CLEAR]),
        ({"keys": ["USER:*"]}, [CLEAR]),
        ({"tags": ["re*"]}, [TAG, CLEAR]),
        ({"tags": ["green"]}, [CLEAR]),
        ({"keys": ["page:*"], "tags": ["blue"]}, [OTHER, TAG, CLEAR]),
        ({"origins": ["worker-*"]}, [SET, OTHER, TAG, DELETE]),
        ({"origins": ["worker-1", "admin"]}, [SET, CLEAR, DELETE]),
        ({"kinds": ["set"]}, [SET, OTHER]),
        ({"kinds": ["tag", "clear"]}, [TAG, CLEAR]),
        ({"kinds": ["set"], "origins": ["worker-1"], "keys": ["*:7"]}, [SET]),
        ({"kinds": ["touch"]}, []),
    ],
)
def test_filters(options, wanted):
    chosen = Filter(**options)
    assert [each for each in ALL if chosen.admits(each)] == wanted
