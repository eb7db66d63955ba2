"""Any bytes are a question, an answer or a report, or a WireError; whatever is asked, nothing changes."""

from __future__ import annotations

import hypothesis.strategies as st
import msgpack
from hypothesis import example, given, settings

from coherent_cache.core.entries import make_entry
from coherent_cache.core.questions import (
    MAX_QUESTION_KEYS,
    Answer,
    Ask,
    Question,
    decode_answer,
    decode_question,
    decode_report,
    encode_answer,
    encode_question,
    encode_report,
    holdings_body,
    holdings_of_body,
)
from coherent_cache.core.reporting import ProcessFacts, Reporter
from coherent_cache.wire import WireError
from tests.unit.core.model import World

EXAMPLES = 4000 if settings.get_current_profile_name() == "ci" else 200
FUZZ = settings(max_examples=EXAMPLES, derandomize=False, deadline=None)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
IDS = st.binary(min_size=8, max_size=8)
QUESTIONS = st.builds(
    Question,
    id=IDS,
    kind=st.one_of(st.sampled_from([each.value for each in Ask]), TEXT),
    to=st.lists(TEXT, max_size=3).map(tuple),
    keys=st.lists(st.one_of(TEXT, st.sampled_from(["a", "b"])), max_size=20).map(tuple),
    most=st.integers(0, MAX_QUESTION_KEYS),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), TEXT, st.binary(max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=6), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=20,
)
BYTES = st.one_of(
    st.binary(max_size=60),
    st.builds(lambda value: b"\x01" + msgpack.packb(value), VALUES),
    st.builds(lambda question, cut: encode_question(question)[:-cut], QUESTIONS, st.integers(1, 8)),
)


@FUZZ
@given(question=QUESTIONS)
def test_every_question_comes_back(question):
    assert decode_question(encode_question(question)) == question


@FUZZ
@given(identity=IDS, member=TEXT, kind=TEXT, body=st.lists(st.one_of(TEXT, st.integers(0, 9)), max_size=5))
def test_every_answer_comes_back(identity, member, kind, body):
    answer = Answer(identity, member, kind, body)
    assert decode_answer(encode_answer(answer)) == answer


@FUZZ
@given(data=BYTES)
@example(data=b"\x01\x95\xc4\x08" + bytes(8) + b"\xa6status\x90\x90\x00")
@example(data=b"\x01\xdd\xff\xff\xff\xff")
def test_any_bytes_are_one_or_refused(data):
    for decode, encode in (
        (decode_question, encode_question),
        (decode_answer, encode_answer),
        (decode_report, encode_report),
    ):
        try:
            found = decode(data)
        except WireError:
            continue
        assert decode(encode(found)) == found


@FUZZ
@given(body=st.lists(VALUES, max_size=4))
@example(body=[[], [], True])
def test_any_body_is_one_or_refused(body):
    try:
        holdings = holdings_of_body(body)
    except WireError:
        return
    assert holdings_of_body(holdings_body(holdings)) == holdings


@FUZZ
@given(data=st.lists(st.one_of(BYTES, QUESTIONS.map(encode_question)), max_size=10))
def test_whatever_is_asked_nothing_changes(data):
    world = World(members="a", shards=2)
    (member,) = world
    reporter = Reporter(member.instance, ProcessFacts("1", "host", 1, 0.0, 0.0))
    for seq, key in enumerate(("a", "b", "c"), 1):
        member.instance.shard_of(key.encode()).tier.insert(key, make_entry("value", seq, 100), member.clock.now)

    def held():
        return [
            (shard.state, shard.position, shard.epoch, shard.generation, shard.synced, shard.tier.valid_until,
             [(key, entry.seq, entry.used) for key, entry in shard.tier.entries.items()])
            for shard in member.instance.shards
        ]  # fmt: skip

    before = held()
    for each in data:
        reporter.answer(each, member.clock.now)
    assert held() == before
    world.check()
