"""What an audit concludes, from what instances said before and after Redis was read."""

from dataclasses import replace
from math import inf

import pytest

from coherent_cache.core.auditing import AuditReport, Doubt, Offender, Suspect, compare, judge_gone, look_again
from coherent_cache.core.questions import HeldEntry, Holdings, ShardFacts
from coherent_cache.core.stored import Presence, Snapshot, Stored
from coherent_cache.wire import Kind
from tests.unit.core.model import message

EPOCH = b"e" * 16
FACTS = ShardFacts(0, "coherent", True, EPOCH, 20, 0.1, "run", 5.0)
SUSPECT = Suspect("a:1", "k", 0, 5, Doubt.OUTDATED, 9, EPOCH, "run", 20, 5.0)
GONE = replace(SUSPECT, doubt=Doubt.GONE, least=0)


def holdings(seq=5, *, key="k", **facts):
    entries = () if seq is None else (HeldEntry(key, 0, seq, inf),)
    return Holdings({0: FACTS._replace(**facts)}, entries, True)


def stored(presence=Presence.VALUE, seq=5, least=None, *, epoch=EPOCH, server="run"):
    there = Stored("k", presence, seq, seq if least is None else least, inf)
    return {"k": (Snapshot(0, epoch, 20, 0, 0, server, (there,)), there)}


@pytest.mark.parametrize(
    ("there", "doubt"),
    [
        (stored(), None),
        (stored(Presence.NOTHING), None),
        (stored(seq=9), Doubt.OUTDATED),
        (stored(Presence.DEAD, seq=5, least=6), Doubt.OUTDATED),
        (stored(Presence.ABSENT, seq=0, least=6), Doubt.OUTDATED),
        (stored(seq=4), Doubt.AHEAD),
        (stored(Presence.ABSENT, seq=0), Doubt.GONE),
        (stored(Presence.LEASE, seq=21, least=0), Doubt.GONE),
        (stored(Presence.FOREIGN, seq=0), Doubt.GONE),
    ],
)
def test_an_entry_is_compared_with_what_redis_has(there, doubt):
    look = compare({"a:1": holdings()}, there)

    assert (look.checked, look.not_served, look.undecided) == (1, 0, 0)
    assert [each.doubt for each in look.suspects] == [each for each in (doubt,) if each]
    for each in look.suspects:
        assert each.least == (there["k"][1].least if doubt is Doubt.OUTDATED else 0)


@pytest.mark.parametrize(
    ("held", "there", "counts"),
    [
        (holdings(serves=False), stored(seq=9), (0, 1, 0)),
        (holdings(), stored(seq=9, epoch=b"f" * 16), (0, 0, 1)),
        (holdings(), stored(seq=9, server="other"), (0, 0, 1)),
    ],
)
def test_what_has_no_order_is_set_aside(held, there, counts):
    look = compare({"a:1": held}, there)

    assert (look.checked, look.not_served, look.undecided) == counts
    assert look.suspects == ()


def again(*held, suspect=SUSPECT):
    return look_again([suspect], {"a:1": held})


@pytest.mark.parametrize(
    ("held", "suspect", "still"),
    [
        (holdings(5), SUSPECT, True),
        (holdings(8), SUSPECT, True),
        (holdings(9), SUSPECT, False),
        (holdings(25), SUSPECT, False),
        (holdings(None), SUSPECT, False),
        (holdings(5, serves=False), SUSPECT, False),
        (holdings(5, epoch=b"f" * 16), SUSPECT, False),
        (holdings(5, server="other"), SUSPECT, False),
        (holdings(5), GONE, True),
        (holdings(6), GONE, False),
    ],
)
def test_what_is_held_later(held, suspect, still):
    assert again(held, suspect=suspect) == (((suspect,) if still else ()), 0)


def test_who_does_not_answer_again_decides_nothing():
    assert again() == ((), 1)
    assert look_again([SUSPECT], {}) == ((), 1)
    assert again(Holdings({}, (), True)) == ((), 1)


def test_answers_in_pieces_belong_together():
    assert again(holdings(1, key="other"), holdings(5)) == ((SUSPECT,), 0)


def test_a_message_tells_what_became_of_a_value():
    log = [message(Kind.SET, 20, "x"), message(Kind.DELETE, 8, "k"), message(Kind.SET, 7, "k")]

    assert judge_gone(GONE, log) == replace(GONE, doubt=Doubt.OUTDATED, least=8)
    assert judge_gone(GONE, [message(Kind.SET, 21, "k"), message(Kind.SET, 5, "k")]) is None


def test_a_whole_log_without_one_tells_that_nobody_wrote():
    log = [message(Kind.SET, seq, "x") for seq in range(6, 21)]

    assert judge_gone(GONE, log) is False
    assert judge_gone(GONE, log[1:]) is None
    assert judge_gone(GONE, [*log[1:], message(Kind.TAG, 6, "t")]) is None
    assert judge_gone(GONE, [*log[1:], message(Kind.RELEASE, 6, "k")]) is False


REPORT = AuditReport(
    namespace="n", asked=3, answered=2, keys=100, checked=200, behind=5, not_served=1, undecided=2, gone=3,
    stale={0.1: 2, 1.0: 0, 10.0: 0}, bound=5.55, beyond=0, offenders=(), seconds=1.0,
)  # fmt: skip


def test_consistency_in_nines():
    assert (REPORT.consistency(0.1), REPORT.nines(0.1)) == (0.99, 2.0)
    assert (REPORT.consistency(1.0), REPORT.nines(1.0)) == (1.0, inf)
    nothing = replace(REPORT, checked=0)
    assert (nothing.consistency(0.1), nothing.nines(0.1)) == (None, None)
    assert nothing.numbers()["consistency_0.1s"] == 1.0


def test_numbers_for_metrics():
    assert REPORT.numbers() == {
        "checked": 200, "behind": 5, "undecided": 2, "gone": 3, "beyond_bound": 0, "instances_asked": 3,
        "instances_answered": 2, "stale_0.1s": 2, "consistency_0.1s": 0.99, "stale_1s": 0, "consistency_1s": 1.0,
        "stale_10s": 0, "consistency_10s": 1.0,
    }  # fmt: skip


def test_a_report_as_plain_values():
    offender = Offender("a", "a:1", "k", 0, 5, 9, "outdated", 5.6)
    told = replace(REPORT, beyond=1, offenders=(offender,)).as_dict()

    assert (told["coherent"], told["stale"]["0.1"], told["nines"]["0.1"]) == (False, 2, 2.0)
    assert told["offenders"][0]["held"] == 5
    assert REPORT.coherent
