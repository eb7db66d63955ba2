"""What an instance tells about itself: it only reads, answers within bounds, and survives whatever it is asked."""

from math import inf

import pytest

from coherent_cache.core import reporting
from coherent_cache.core.entries import KeptEntry, make_entry
from coherent_cache.core.questions import (
    MAX_QUESTION_KEYS,
    UNKNOWN,
    Ask,
    Fate,
    Question,
    decode_answer,
    decode_report,
    encode_question,
    holdings_of_body,
    message_name,
    shard_of_body,
)
from coherent_cache.core.reporting import ProcessFacts, Reporter
from coherent_cache.core.shard import RECENT_NAMES
from coherent_cache.events import InternalError
from coherent_cache.versions import Version
from coherent_cache.wire import Kind
from tests.unit.core.model import message

ID = b"12345678"
FACTS = ProcessFacts("1.2.3", "host", 17, 5000.0, 990.0)


class Asked:
    """An instance that holds what a test put there, and an operator who asks it."""

    def __init__(self, world):
        (self.member,) = world
        self.instance = self.member.instance
        self.reporter = Reporter(self.instance, FACTS)

    @property
    def now(self):
        return self.member.clock.now

    def put(self, key, seq, *, expires_at=inf, tags=()):
        shard = self.instance.shard_of(key.encode())
        shard.tier.insert(key, make_entry("value", seq, 100, expires_at, tags=tags), self.now)
        return shard

    def say(self, kind, seq, *names, shard=0):
        self.instance.shards[shard].apply(
            message(kind, seq, *names, epoch=self.instance.shards[shard].epoch), now=self.now
        )

    def ask(self, kind, **options):
        """Ask, and return the body of the answer."""
        identity, data = self.reporter.answer(encode_question(Question(ID, kind, **options)), self.now)
        answer = decode_answer(data)
        assert (identity, answer.id, answer.member) == (ID, ID, self.instance.member)
        assert answer.kind in {kind, UNKNOWN}
        return answer.body

    def held(self, kind, **options):
        return holdings_of_body(self.ask(kind, **options))


@pytest.fixture
def asked(new_world):
    return Asked(new_world(members="a"))


@pytest.fixture
def asked_of_three(new_world):
    return Asked(new_world(members="a", shards=3))


def test_a_report_tells_what_the_instance_counts(asked):
    asked.put("a", 3)

    report = decode_report(asked.reporter.report(asked.now))
    assert (report.member, report.instance, report.version, report.host, report.pid) == ("a", "a", "1.2.3", "host", 17)
    assert (report.started, report.uptime, report.state) == (5000.0, asked.now - 990.0, "coherent")
    assert (report.entries, report.bytes, report.resyncs) == (1, 100, 1)
    assert (report.bound, report.interval) == (asked.instance.settings.max_staleness, 2.0)
    assert report.options["max_staleness"] == asked.instance.settings.max_staleness
    assert asked.ask(Ask.STATUS) == [asked.reporter.report(asked.now)]


def test_a_report_is_kept_for_three_of_them(new_world):
    assert Asked(new_world(members="a")).reporter.expiry_ms == 6000
    quick = Asked(new_world(members="a", heartbeat=0.01))
    assert (quick.reporter.interval, quick.reporter.expiry_ms) == (0.02, 1000)


def test_versions_of_what_is_held(asked):
    asked.put("a", 3)
    asked.put("b", 4, expires_at=asked.now + 2.5)
    asked.put("over", 5, expires_at=asked.now)

    held = asked.held(Ask.VERSIONS, keys=("a", "b", "over", "c", "", "x" * 2000))
    assert [tuple(entry) for entry in held.entries] == [("a", 0, 3, inf), ("b", 0, 4, 2.5)]
    shard = asked.instance.shards[0]
    assert held.shards[0]._asdict() == {
        "shard": 0, "state": "coherent", "serves": True, "epoch": shard.epoch, "position": shard.position,
        "horizon_age": asked.now - shard.tier.horizon, "server": shard.server, "bound": 5.0,
    }  # fmt: skip
    assert held.complete


def test_a_sample_has_its_share_of_every_shard(asked_of_three):
    for number in range(90):
        asked_of_three.put(f"key-{number}", number + 1)

    held = asked_of_three.held(Ask.SAMPLE, most=12)
    assert {shard: sum(entry.shard == shard for entry in held.entries) for shard in held.shards} == {0: 4, 1: 4, 2: 4}
    assert len({entry.key for entry in held.entries}) == 12
    assert len(asked_of_three.held(Ask.SAMPLE, most=1000).entries) == 90


def test_an_answer_is_bounded(asked, monkeypatch):
    for number in range(MAX_QUESTION_KEYS + 1):
        asked.put(f"{number}", number + 1)
    every = asked.reporter.holdings([f"{number}" for number in range(MAX_QUESTION_KEYS + 1)], asked.now)
    assert (len(every.entries), every.complete) == (MAX_QUESTION_KEYS, False)

    monkeypatch.setattr(reporting, "MAX_ANSWER_BYTES", 100)
    few = asked.held(Ask.VERSIONS, keys=("1", "2", "3"))
    assert (len(few.entries), few.complete) == (2, False)


def test_who_is_disconnected_serves_nothing(asked):
    asked.put("a", 3)
    asked.member.clock.now += 6

    facts = asked.held(Ask.VERSIONS, keys=("a",)).shards[0]
    assert (facts.state, facts.serves) == ("disconnected", False)


def test_unless_it_serves_stale(new_world):
    asked = Asked(new_world(members="a", on_disconnect="serve_stale", stale_limit=60))
    asked.put("a", 3)
    for seconds, serves in ((6, True), (60, False)):
        asked.member.clock.now += seconds
        facts = asked.held(Ask.VERSIONS, keys=("a",)).shards[0]
        assert (facts.state, facts.serves, facts.bound) == ("disconnected", serves, 60.0)


def test_who_has_never_been_connected_says_so(new_world):
    asked = Asked(new_world(members="a", connect=False))

    facts = asked.held(Ask.VERSIONS, keys=("a",)).shards[0]
    assert (facts.state, facts.serves, facts.epoch, facts.position, facts.server) == ("connecting", False, b"", 0, "")
    assert facts.horizon_age == inf


def test_a_key_is_explained(asked):
    shard = asked.put("a", 3, expires_at=asked.now + 2, tags=("t",))
    shard.kept.insert("a", KeptEntry(make_entry("old", 2, 90), 30.0), asked.now)
    with_token = shard.register(("a", "b"))
    flight, _, _ = asked.instance.flights.join("a")

    (told,) = asked.ask(Ask.EXPLAIN, keys=("a", ""))
    assert told["held"] == {"seq": 3, "expires_in": 2.0, "size": 100, "tags": ["t"]}
    assert told["kept"] == {"seq": 2, "expires_in": None, "size": 90, "tags": []}
    assert (told["commands"], told["loading"], told["local_enabled"]) == (1, True, True)
    assert (told["on_disconnect"], told["stale_limit"]) == ("bypass", 60.0)
    assert shard_of_body(told["shard"]).state == "coherent"

    shard.release(with_token)
    asked.instance.flights.end(flight)
    (told,) = asked.ask(Ask.EXPLAIN, keys=("b",))
    assert (told["held"], told["kept"], told["commands"], told["loading"]) == (None, None, 0, False)


def test_messages_that_concern_a_key_are_told_newest_first(asked):
    many = [f"{number}" for number in range(RECENT_NAMES + 1)]
    for seq, kind, names in (
        (1, Kind.SET, ["a"]),
        (2, Kind.SET, ["b"]),
        (3, Kind.BATCH, many),
        (4, Kind.TAG, ["a"]),
        (5, Kind.CLEAR, []),
        (6, Kind.DELETE, ["a", "b"]),
    ):
        asked.say(kind, seq, *names)
    asked.member.clock.now += 2

    (told,) = asked.ask(Ask.EXPLAIN, keys=("a",))
    shown = [(each["seq"], each["kind"], each["certain"], each["names"]) for each in told["recent"]]
    assert shown == [
        (6, "delete", True, 2),
        (5, "clear", True, 0),
        (4, "tag", False, 1),
        (3, "batch", False, len(many)),
        (1, "set", True, 1),
    ]
    assert {each["seconds_ago"] for each in told["recent"]} == {2.0}


def test_as_many_messages_as_are_shown(asked):
    for seq in range(1, 31):
        asked.say(Kind.SET, seq, "a")

    (told,) = asked.ask(Ask.EXPLAIN, keys=("a",))
    assert [each["seq"] for each in told["recent"]] == list(range(30, 10, -1))


def test_what_is_not_for_it_is_not_answered(asked):
    question = encode_question(Question(ID, Ask.STATUS, ("other",)))
    assert asked.reporter.answer(question, asked.now) is None
    assert asked.reporter.answer(encode_question(Question(ID, Ask.STATUS, ("other", "a"))), asked.now) is not None
    assert asked.instance.counters.errors == 0


def test_what_a_newer_release_asks_is_unknown(asked):
    _, data = asked.reporter.answer(encode_question(Question(ID, "why")), asked.now)
    assert (decode_answer(data).kind, decode_answer(data).body) == (UNKNOWN, [])


@pytest.mark.parametrize("data", [b"", b"\x02\x90", b"\x01\xc1", b"\x01\x90"])
def test_what_cannot_be_understood_is_counted(asked, data):
    assert asked.reporter.answer(data, asked.now) is None
    assert asked.instance.counters.errors == 1


def test_no_question_ends_the_thread(asked, monkeypatch):
    monkeypatch.setattr(Reporter, "status", lambda *_: 1 / 0)

    assert asked.reporter.answer(encode_question(Question(ID, Ask.STATUS)), asked.now) is None
    assert asked.instance.counters.errors == 1
    assert [event for event in asked.member.events if isinstance(event, InternalError)]


def test_answering_changes_nothing(asked):
    shard = asked.put("a", 3, tags=("t",))
    asked.put("b", 4)
    asked.say(Kind.SET, 9, "c")

    def everything():
        tier = shard.tier
        entries = {key: (entry.seq, entry.used, entry.birth) for key, entry in tier.entries.items()}
        state = (shard.state, shard.position, shard.epoch, shard.generation, shard.synced, shard.nonce)
        return (
            entries,
            state,
            (tier.horizon, tier.valid_until, tier.ticks, tier.births),
            asked.instance.stats(asked.now),
        )

    before = everything()
    for kind in (*Ask, "why"):
        asked.ask(kind, keys=("a", "b", "c"), most=5)
    assert everything() == before


def test_what_became_of_messages(asked):
    shard = asked.instance.shards[0]
    epoch, position = shard.epoch, shard.position
    asked.put("held", position)
    asked.say(Kind.SET, position + 1, "held")
    asked.say(Kind.SET, position + 2, "unknown")
    names = [message_name(0, Version(epoch, seq)) for seq in (position + 1, position + 2, position + 3)]

    assert asked.ask(Ask.MESSAGES, keys=(*names, message_name(0, Version(b"another history.", 1)))) == [
        Fate.APPLIED, Fate.IGNORED, Fate.BEHIND, Fate.ELSEWHERE,
    ]  # fmt: skip
    shard.recent.clear()
    shard.position = position + 2
    assert asked.ask(Ask.MESSAGES, keys=names) == [Fate.PASSED, Fate.PASSED, Fate.BEHIND]


@pytest.mark.parametrize("name", ["", "0", "9:" + "0" * 32 + ":1", "x:" + "0" * 32 + ":1", "0:nonsense", "0:1:1"])
def test_names_that_name_no_message(asked, name):
    assert asked.ask(Ask.MESSAGES, keys=(name,)) == [""]
