"""A little of ``python -m integration.fuzz_subscriber``, which is to be run with a million inputs or more.

The fuzzer itself is tested as well: with a rule broken on purpose it must find something.
"""

from __future__ import annotations

import secrets
from random import Random

import pytest

from coherent_cache import wire
from coherent_cache.core.local_tier import LocalTier
from coherent_cache.core.session import Session
from coherent_cache.core.shard import Shard
from integration.fuzz_subscriber import ALLOWED, SHARES, Report, Stream, bulk, push, run

INPUTS = 6000


@pytest.mark.parametrize("seed", [1, None], ids=["fixed", "random"])
def test_hostile_bytes_do_no_harm(seed):
    report = run(INPUTS, seed if seed is not None else secrets.randbits(32))

    assert report.findings == {}
    assert report.inputs == {target: round(share * INPUTS) for target, share in SHARES.items()}
    # A target that refuses everything, or is never coherent, would prove nothing.
    assert all(report.taken[target] > report.inputs[target] / 20 for target in ("envelope", "message", "sync"))
    assert report.coherent > report.inputs["stream"] / 20


def test_a_run_can_be_repeated():
    first, second = run(2000, 3), run(2000, 3)

    assert (first.taken, first.endings, first.sessions) == (second.taken, second.endings, second.sessions)


def broken_message(self, shard, data, now):
    """A session that ignores what it cannot understand, instead of flushing (P8)."""
    try:
        self._shards[shard].apply(wire.decode_message(data), now=now)
    except wire.WireError:
        return


@pytest.mark.parametrize(
    ("owner", "name", "broken"),
    [
        pytest.param(Session, "message", broken_message, id="damaged messages ignored"),
        pytest.param(Shard, "_evict", lambda self, message: False, id="nothing evicted"),
        pytest.param(LocalTier, "evict_older", lambda self, key, seq: self.entries.pop(key, None), id="books wrong"),
        pytest.param(wire, "_number", lambda text: int(text) if text.isdigit() else 1, id="numbers guessed"),
    ],
)
def test_the_fuzzer_finds_what_is_broken(monkeypatch, owner, name, broken):
    monkeypatch.setattr(owner, name, broken)

    assert run(INPUTS, 1).findings


CHANNEL = b"cc:{fuzz/0}:messages:0"
HOSTILE = {
    "a map with a list as key": b"%1\r\n*0\r\n+a\r\n",
    "a list where a kind should be": b"*3\r\n*0\r\n+a\r\n+b\r\n",
    "a list where a channel should be": b">3\r\n" + bulk(b"message") + b"*0\r\n" + bulk(b"data"),
    "a number where a message should be": b">3\r\n" + bulk(b"message") + bulk(CHANNEL) + b":5\r\n",
    "a map where a message should be": b">3\r\n" + bulk(b"message") + bulk(CHANNEL) + b"%0\r\n",
    "nothing where a message should be": b">3\r\n" + bulk(b"message") + bulk(CHANNEL) + b"_\r\n",
    "a list where a subscription's channel should be": b">3\r\n" + bulk(b"subscribe") + b"*0\r\n" + b":1\r\n",
}


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in HOSTILE.items()])
def test_resp_of_other_types_ends_the_connection_like_anything_else_that_is_wrong(data):
    stream = Stream(Random(1), Report())

    with pytest.raises(ALLOWED):
        stream.one_input(data, inline=True)


@pytest.mark.parametrize("inline", [True, False])
def test_what_is_no_protocol_ends_the_connection(inline):
    for data in (b"\x00\r\n", b"$x\r\n", b"-ERR\r\n", b"+OK\r\n+OK\r\n", push(b"unsubscribe", CHANNEL, b"1")):
        with pytest.raises(ALLOWED):
            Stream(Random(1), Report()).one_input(data, inline=inline)
