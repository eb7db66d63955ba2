"""Reports, questions and answers as bytes: what is not exactly one is refused by name, whatever it is."""

import json
from dataclasses import replace
from math import inf
from pathlib import Path

import msgpack
import pytest

from coherent_cache.core.questions import (
    MAX_EXPLAINED_KEYS,
    MAX_QUESTION_KEYS,
    Answer,
    Ask,
    HeldEntry,
    Holdings,
    InstanceReport,
    Question,
    ShardFacts,
    decode_answer,
    decode_question,
    decode_report,
    encode_answer,
    encode_question,
    encode_report,
    holdings_body,
    holdings_of_body,
    shard_body,
    shard_of_body,
)
from coherent_cache.keys import shard_names
from coherent_cache.wire import UnknownFormat, WireError

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "questions-v1.json").read_text(encoding="utf-8"))
ID = b"12345678"
REPORT = InstanceReport(member="a:1", instance="a", horizon_age=1.5, options={"shards": 2})
SHARD = ShardFacts(0, "coherent", True, b"e" * 16, 7, 0.5, "server", 5.0)


def packed(value, head=b"\x01"):
    return head + msgpack.packb(value)


# --- what release 1 sends ---


@pytest.mark.parametrize("record", GOLDEN["reports"])
def test_reports_are_what_they_were(record):
    age = inf if record["horizon_age"] is None else record["horizon_age"]
    report = InstanceReport(**record["fields"], horizon_age=age)

    assert encode_report(report).hex() == record["hex"]
    assert decode_report(bytes.fromhex(record["hex"])) == report


@pytest.mark.parametrize("record", GOLDEN["questions"])
def test_questions_are_what_they_were(record):
    question = Question(
        bytes.fromhex(record["id"]), record["kind"], tuple(record["to"]), tuple(record["keys"]), record["most"]
    )

    assert encode_question(question).hex() == record["hex"]
    assert decode_question(bytes.fromhex(record["hex"])) == question


@pytest.mark.parametrize("record", GOLDEN["answers"])
def test_answers_are_what_they_were(record):
    answer = decode_answer(bytes.fromhex(record["hex"]))

    assert (answer.id.hex(), answer.member, answer.kind) == (record["id"], record["member"], record["kind"])
    assert encode_answer(answer).hex() == record["hex"]
    if answer.body:
        assert holdings_body(holdings_of_body(answer.body)) == answer.body


def test_names_are_what_they_were():
    names = shard_names("shop", 0, 3)

    assert {
        "questions": names.questions.decode(),
        "answer": names.answer(bytes(range(8))).decode(),
        "report": names.report("a:00ff").decode(),
    } == GOLDEN["names"]


# --- reports ---


def test_a_newer_release_may_say_more_and_an_older_one_less():
    assert decode_report(packed({"member": "a:1", "instance": "a", "new": [1]})) == InstanceReport(
        member="a:1", instance="a"
    )


def test_what_follows_from_a_report():
    assert REPORT.hit_rate == 0.0
    busy = replace(REPORT, hits=3, misses=1)
    assert (busy.requests, busy.hit_rate) == (4, 0.75)
    assert busy.as_dict()["hit_rate"] == 0.75
    assert busy.as_dict()["options"] == {"shards": 2}


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", UnknownFormat),
        (packed({}, b"\x02"), UnknownFormat),
        (b"\x01\xc1", WireError),
        (packed([1]), WireError),
        (packed({"member": "a"}), WireError),
        (packed({"member": "a", "instance": 1}), WireError),
        (packed({"member": "a", "instance": "a", "pid": True}), WireError),
        (packed({"member": "a", "instance": "a", "options": []}), WireError),
        (packed({"member": "a", "instance": "a", "options": {"a": [1]}}), WireError),
        (packed({"member": "a", "instance": "a"}) + b"\x00", WireError),
    ],
)
def test_what_is_no_report_is_refused(data, error):
    with pytest.raises(error):
        decode_report(data)


# --- questions and answers ---


@pytest.mark.parametrize(
    "fields",
    [
        [b"1234567", "status", [], [], 0],
        [ID, "status", [1], [], 0],
        [ID, "versions", [], [b"key"], 0],
        [ID, "versions", [], ["k"] * (MAX_QUESTION_KEYS + 1), 0],
        [ID, "sample", [], [], MAX_QUESTION_KEYS + 1],
        [ID, "sample", [], [], -1],
        [ID, "explain", [], ["k"] * (MAX_EXPLAINED_KEYS + 1), 0],
        [ID, "status", [], [], 0, "more"],
        [ID, "status", [], [], True],
    ],
)
def test_what_is_no_question_is_refused(fields):
    with pytest.raises(WireError):
        decode_question(packed(fields))


def test_as_much_as_a_question_may_ask():
    most = Question(ID, Ask.VERSIONS.value, (), ("k",) * MAX_QUESTION_KEYS, MAX_QUESTION_KEYS)
    assert decode_question(encode_question(most)) == most
    explained = Question(ID, Ask.EXPLAIN.value, (), ("k",) * MAX_EXPLAINED_KEYS)
    assert decode_question(encode_question(explained)) == explained


def test_other_formats_are_told_from_damage():
    with pytest.raises(UnknownFormat):
        decode_question(packed([ID, "status", [], [], 0], b"\x02"))
    with pytest.raises(UnknownFormat):
        decode_answer(packed([ID, "a:1", "status", []], b"\x02"))


@pytest.mark.parametrize("fields", [[b"short", "a", "k", []], [ID, "a", "k", {}], [ID, "a", "k"]])
def test_what_is_no_answer_is_refused(fields):
    with pytest.raises(WireError):
        decode_answer(packed(fields))


def test_holdings_there_and_back():
    holdings = Holdings(
        {0: SHARD._replace(horizon_age=inf)}, (HeldEntry("k", 0, 5, inf), HeldEntry("l", 0, 6, 1.5)), True
    )

    answer = decode_answer(encode_answer(Answer(ID, "a:1", "versions", holdings_body(holdings))))
    assert holdings_of_body(answer.body) == holdings
    assert shard_of_body(shard_body(SHARD)) == SHARD


@pytest.mark.parametrize(
    "body",
    [
        [],
        [[], []],
        [[1], [], True],
        [[], [["k", 0, 5, 1.0]], True],
        [[shard_body(SHARD)], [["k", 0, "5", 1.0]], True],
        [[shard_body(SHARD)[:-1]], [], True],
    ],
)
def test_what_are_no_holdings_is_refused(body):
    with pytest.raises(WireError):
        holdings_of_body(body)
