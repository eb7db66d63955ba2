"""Why the next read does what it does, in words, from what instances and Redis say."""

from math import inf

import pytest

from coherent_cache.core.explaining import (
    Explanation,
    Next,
    describe_message,
    describe_stored,
    explain_instance,
)
from coherent_cache.core.questions import ShardFacts, shard_body
from coherent_cache.core.stored import Presence, Snapshot, Stored
from coherent_cache.wire import Kind, WireError
from tests.unit.core.model import message

EPOCH = b"e" * 16
FACTS = ShardFacts(0, "coherent", True, EPOCH, 20, 0.25, "run", 5.0)
RECENT = {
    "seconds_ago": 1.5, "kind": "set", "seq": 9, "origin": "web-2", "applied": True, "certain": True, "names": 1,
}  # fmt: skip


def stored(presence=Presence.VALUE, seq=5, least=None, expires_in=inf):
    return Stored("k", presence, seq, seq if least is None else least, expires_in)


def snapshot(there, *, floor=0, epoch=EPOCH, server="run"):
    return Snapshot(0, epoch, 20, floor, 30_000_000, server, (there,))


def told(held=5, *, left=None, tags=(), facts=FACTS, **more):
    entry = None if held is None else {"seq": held, "expires_in": left, "size": 9, "tags": list(tags)}
    return {
        "key": "k", "shard": shard_body(facts), "held": entry, "kept": None, "commands": 0, "loading": False,
        "local_enabled": True, "on_disconnect": "bypass", "stale_limit": 60.0, "recent": [], **more,
    }  # fmt: skip


def explained(answer, there=None, **options):
    there = there or stored()
    return explain_instance("web-1:aa", answer, there, snapshot(there, **options))


LAPSED = FACTS._replace(state="disconnected", serves=False, horizon_age=70.0)


@pytest.mark.parametrize(
    ("answer", "does", "words"),
    [
        (told(), Next.LOCAL, "it holds version 5; freshness was proven 0.25 s ago, and is good for 5 s"),
        (told(left=2.5), Next.LOCAL, "it holds version 5 for 2.5 s more"),
        (told(left=0.0), Next.REDIS, "the time of what it holds, version 5, is over"),
        (told(None), Next.REDIS, "it holds nothing under this key"),
        (
            told(None, recent=[RECENT | {"applied": False}, RECENT | {"kind": "release"}, RECENT]),
            Next.REDIS,
            "it holds nothing under this key, since a set at version 9 by web-2 came 1.5 s ago",
        ),
        (told(None, recent=[RECENT | {"certain": False}]), Next.REDIS, "perhaps since a set"),
        (told(None, loading=True), Next.REDIS, "a loader is running there, and get_or_set waits for it"),
        (
            told(facts=FACTS._replace(state="connecting", serves=False, horizon_age=inf)),
            Next.REDIS,
            "its connection is connecting, freshness was last proven never",
        ),
        (
            told(facts=LAPSED),
            Next.REDIS,
            "it is disconnected, freshness was last proven 70.00 s ago, on_disconnect='bypass'",
        ),
        (told(facts=LAPSED, on_disconnect="fail"), Next.RAISES, "on_disconnect='fail'"),
        (told(facts=LAPSED, on_disconnect="serve_stale"), Next.REDIS, "for longer than stale_limit (60 s)"),
        (
            told(facts=LAPSED._replace(serves=True), on_disconnect="serve_stale"),
            Next.LOCAL,
            "it is disconnected, freshness was last proven 70.00 s ago, and it serves stale values for 60 s",
        ),
    ],
)
def test_what_the_next_read_does(answer, does, words):
    found = explained(answer)

    assert (found.instance, found.next) == ("web-1", does)
    assert words in found.why


@pytest.mark.parametrize(
    ("there", "options", "words"),
    [
        (stored(), {}, "that is what Redis has"),
        (stored(seq=9), {}, "OUTDATED: version 9 or newer is due"),
        (stored(Presence.DEAD, seq=5, least=6), {}, "OUTDATED: version 6 or newer is due"),
        (stored(seq=4), {}, "Redis has version 4, an older one"),
        (stored(Presence.ABSENT, seq=0), {}, "Redis has no value"),
        (stored(), {"epoch": b"f" * 16}, "another history or server"),
        (stored(), {"server": "other"}, "another history or server"),
    ],
)
def test_what_is_held_is_compared_with_redis(there, options, words):
    assert words in explained(told(), there, **options).why


@pytest.mark.parametrize(
    ("there", "options", "words"),
    [
        (stored(expires_in=1.25), {}, "version 5, for 1.2 s more"),
        (stored(), {}, "version 5, without an end"),
        (stored(Presence.LEASE, seq=21, least=0, expires_in=8.0), {}, "somebody is loading it, with a lease for 8.0 s"),
        (stored(Presence.NOTHING), {}, "no such thing"),
        (stored(Presence.FOREIGN, seq=0), {}, "bytes of another program"),
        (stored(Presence.DEAD, seq=5, least=9), {"floor": 8}, "that of version 5 was cleared at version 8"),
        (stored(Presence.DEAD, seq=5, least=6), {"floor": 2}, "invalidated by a tag"),
        (stored(Presence.ABSENT, seq=0), {}, "get_or_set loads"),
        (stored(Presence.ABSENT, seq=0), {"epoch": b""}, "nothing, nor anything else"),
    ],
)
def test_what_who_asks_redis_finds(there, options, words):
    assert words in describe_stored(there, snapshot(there, **options))


def test_messages_of_the_log():
    def described(kind, *names):
        return describe_message(message(kind, 7, *names, time_us=28_500_000), "k", 30_000_000)

    assert described(Kind.SET, "k", "l") == {
        "seconds_ago": 1.5, "kind": "set", "seq": 7, "origin": "b", "certain": True, "names": 2,
    }  # fmt: skip
    assert described(Kind.SET, "l") is None
    assert described(Kind.TAG, "k")["certain"] is False
    assert described(Kind.CLEAR)["certain"] is True


@pytest.mark.parametrize(
    "answer",
    [
        None, [], {}, told(recent=[{}]), told(recent=5), told(stale_limit="long"),
        told() | {"held": {"seq": 1}},
        told() | {"shard": []},
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(answer):
    with pytest.raises(WireError):
        explained(answer)


def test_everything_as_plain_values():
    there = stored(expires_in=7.0)
    answer = told(tags=["t"], kept={"seq": 2, "expires_in": None, "size": 1, "tags": []}, recent=[RECENT])
    explanation = Explanation(
        namespace="n", server="here", key="k", shard=0, snapshot=snapshot(there, floor=3), refresh=None,
        log=({"seq": 5},), instances=(explained(answer),), unanswered=("web-9:bb",),
    )  # fmt: skip

    plain = explanation.as_dict()
    assert (plain["redis"]["version"], plain["redis"]["floor"], plain["redis"]["expires_in"]) == (5, 3, 7.0)
    (instance,) = plain["instances"]
    assert (instance["held"]["tags"], instance["kept"]["version"], instance["next"]) == (["t"], 2, "local")
    assert instance["recent"] == [RECENT]
    assert (plain["log"], plain["unanswered"]) == ([{"seq": 5}], ["web-9:bb"])
    assert explained(told(None)).as_dict()["held"] is None
