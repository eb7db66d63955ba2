"""What a header in Redis says about the entries that instances hold."""

from math import inf

import pytest

from coherent_cache.core.stored import Presence, Stored, judge
from coherent_cache.keys import key_digest
from coherent_cache.wire import CODE_LEASE, CODE_NOTHING, encode_content, encode_envelope, envelope_prefix

EPOCH, OTHER = b"e" * 16, b"f" * 16


def head(seq, *, epoch=EPOCH, codec=1, schema=0):
    prefix = envelope_prefix(key_digest(b"k"), codec, schema)
    return encode_envelope(prefix, epoch, seq, 0, encode_content((), b"payload"))[:70]


@pytest.mark.parametrize(
    ("raw", "floor", "expected"),
    [
        ((0, b"", 0, 0), 0, (Presence.ABSENT, 0, 0, 0.0)),
        ((0, b"", 0, 0), 4, (Presence.ABSENT, 0, 5, 0.0)),
        ((2, b"", 0, -1), 4, (Presence.FOREIGN, 0, 5, inf)),
        ((1, b"no envelope", 0, 1500), 4, (Presence.FOREIGN, 0, 5, 1.5)),
        ((1, b"\xc1" + b"x" * 69, 0, 1500), 0, (Presence.FOREIGN, 0, 0, 1.5)),
        ((1, head(7), 0, 1500), 4, (Presence.VALUE, 7, 7, 1.5)),
        ((1, head(7, schema=3), 0, -1), 4, (Presence.VALUE, 7, 7, inf)),
        ((1, head(7, codec=CODE_NOTHING), 0, -1), 4, (Presence.NOTHING, 7, 7, inf)),
        ((1, head(7, codec=CODE_LEASE), 0, 900), 4, (Presence.LEASE, 7, 5, 0.9)),
        ((1, head(7, epoch=OTHER), 0, -1), 4, (Presence.DEAD, 7, 5, inf)),
        ((1, head(7), 0, -1), 7, (Presence.DEAD, 7, 8, inf)),
        ((1, head(7), 9, -1), 4, (Presence.DEAD, 7, 8, inf)),
    ],
)
def test_what_lies_under_a_key(raw, floor, expected):
    presence, seq, least, expires_in = expected

    assert judge("k", raw, EPOCH, floor) == Stored("k", presence, seq, least, expires_in)


@pytest.mark.parametrize("seq", [0, 2**60])
def test_a_version_out_of_range_is_damage(seq):
    assert judge("k", (1, head(seq), 0, -1), EPOCH, 0).presence is Presence.FOREIGN
