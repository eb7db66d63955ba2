"""Any bytes decode to what encodes to the same bytes, or are a WireError: never another value, never another error.

Twenty times as many examples: ``pytest --hypothesis-profile=ci``, which is the default where ``CI`` is set.
"""

from __future__ import annotations

import functools

import hypothesis.strategies as st
import msgpack
import pytest
from hypothesis import assume, event, example, given, settings

from coherent_cache import wire
from coherent_cache.keys import DIGEST_BYTES, MAX_TAG_BYTES, key_digest
from coherent_cache.versions import EPOCH_BYTES, MAX_SEQ, NONCE_BYTES
from coherent_cache.wire import Kind, Message, OtherSchema, SyncReply, WireError

EXAMPLES = 4000 if settings.get_current_profile_name() == "ci" else 200
FUZZ = settings(max_examples=EXAMPLES, derandomize=False, deadline=None)
MAX_DIGITS = 10**16 - 1  # what 16 digits hold

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
EPOCHS = st.binary(min_size=EPOCH_BYTES, max_size=EPOCH_BYTES)
NONCES = st.binary(min_size=NONCE_BYTES, max_size=NONCE_BYTES)
DIGESTS = st.binary(min_size=DIGEST_BYTES, max_size=DIGEST_BYTES)
CODECS = st.integers(0, 255)
CODINGS = st.builds(lambda codec, compression: codec + 256 * compression, CODECS, st.sampled_from([0, 0, 1, 2]))
SCHEMAS = st.one_of(st.just(0), st.integers(0, 65_535))
SEQS = st.integers(1, MAX_SEQ)
MAX_TIME = MAX_DIGITS * 1_000_000 + 999_999
TIMES = st.integers(0, MAX_TIME)
TAGS = st.lists(TEXT.filter(lambda tag: len(tag.encode()) <= MAX_TAG_BYTES), max_size=20).map(tuple)
PAYLOADS = st.one_of(
    st.binary(max_size=300),
    st.builds(
        lambda byte, size: byte * size, st.binary(min_size=1, max_size=1), st.sampled_from([255, 256, 65_535, 65_536])
    ),
)
ENVELOPES = st.tuples(EPOCHS, SEQS, st.integers(0, MAX_DIGITS), CODINGS, TAGS, PAYLOADS)
MESSAGES = st.builds(
    Message,
    kind=st.sampled_from(Kind),
    epoch=EPOCHS,
    seq=SEQS,
    nonce=NONCES,
    previous=NONCES,
    time_us=TIMES,
    origin=TEXT,
    names=st.lists(TEXT, max_size=20).map(tuple),
    wants_receipts=st.booleans(),
)
RECEIPTS = st.tuples(NONCES, TEXT)
SYNC_REPLIES = st.builds(
    SyncReply,
    token=st.binary(max_size=40),
    status=TEXT,
    epoch=EPOCHS,
    seq=st.integers(0, MAX_SEQ),
    nonce=NONCES,
    time_us=TIMES,
    entries=st.lists(st.binary(max_size=40), max_size=5).map(tuple),
)

# An envelope of each shape that the decoder tells apart, and a reader's key.
DIGEST = key_digest(b"key")


def encode_envelope(fields, digest: bytes, schema: int = 0) -> bytes:
    epoch, seq, expires_ms, coding, tags, payload = fields
    compression, codec = divmod(coding, 256)
    prefix = wire.compressed_prefix(wire.envelope_prefix(digest, codec, schema), compression)
    return wire.encode_envelope(prefix, epoch, seq, expires_ms, wire.encode_content(tags, payload))


def decode_envelope(data: bytes, digest: bytes, codec: int, schema: int = 0):
    return wire.decode_envelope(data, wire.envelope_prefix(digest, codec % 256, schema))


@st.composite
def mutated(draw, valid):
    """Valid bytes with some bits flipped, a piece cut off, cut out, put in, repeated or replaced."""
    data = bytearray(draw(valid))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        action = draw(st.sampled_from(["flip", "set", "truncate", "remove", "insert", "repeat"]))
        if action == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif action == "set" and at < len(data):
            # Heads of msgpack and digits: what the decoders look at.
            data[at] = draw(
                st.sampled_from([0, 0x2B, 0x30, 0x39, 0x90, 0x98, 0xC1, 0xC4, 0xC5, 0xC6, 0xCC, 0xD9, 0xDC, 0xFF])
            )
        elif action == "truncate":
            del data[at:]
        elif action == "remove":
            del data[at : at + draw(st.integers(1, 20))]
        elif action == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=20))
        elif action == "repeat":
            data[at:at] = data[at : at + draw(st.integers(1, 80))]
    return bytes(data)


def check_envelope(data: bytes, digest: bytes, codec: int, schema: int = 0) -> None:
    try:
        fields = decode_envelope(data, digest, codec, schema)
    except WireError:
        event("refused")
        return
    event("taken")
    assert encode_envelope(fields, digest, schema) == data
    # The short cut for common envelopes must judge as the decoder of all envelopes does.
    assert wire._decode_envelope(data, wire.envelope_prefix(digest, codec, schema)) == fields
    # So must the one for those that have a known envelope's stamp.
    prefix = wire.envelope_prefix(digest, codec, schema)
    payload = wire.decode_twin(data, prefix) if not fields[4] else None
    assert payload in (None, fields[5])
    if payload is None and not fields[4] and fields[3] == codec:
        assert not 0 < len(fields[5]) < 0x1_0000


# --- envelopes ---


@given(ENVELOPES, DIGESTS, CODECS, SCHEMAS)
@FUZZ
def test_an_envelope_comes_back_whatever_codec_its_reader_expects(fields, digest, expected, schema):
    data = encode_envelope(fields, digest, schema)

    assert decode_envelope(data, digest, fields[3], schema) == fields
    assert decode_envelope(data, digest, expected, schema) == fields


@given(ENVELOPES, DIGESTS, CODECS, SCHEMAS, SCHEMAS)
@FUZZ
def test_an_envelope_of_another_schema_is_told_from_anothers_key(fields, digest, expected, schema, other):
    assume(schema != other)

    with pytest.raises(OtherSchema):
        decode_envelope(encode_envelope(fields, digest, schema), digest, expected, other)
    with pytest.raises(OtherSchema):
        decode_envelope(encode_envelope(fields, digest, schema), digest, fields[3], other)


@given(st.binary(max_size=200), DIGESTS, CODECS, SCHEMAS)
@example(b"", DIGEST, 1, 0)
@example(b"\xc1", DIGEST, 1, 0)
@example(b"\xc1\x01", DIGEST, 1, 0)
@FUZZ
def test_any_bytes_are_an_envelope_or_an_error(data, digest, codec, schema):
    check_envelope(data, digest, codec, schema)


@given(st.binary(max_size=120), CODECS, SCHEMAS)
@FUZZ
def test_any_bytes_after_the_prefix_are_an_envelope_or_an_error(rest, codec, schema):
    check_envelope(wire.envelope_prefix(DIGEST, codec, schema) + rest, DIGEST, codec, schema)


@given(EPOCHS, SEQS, st.binary(max_size=80), CODECS)
@example(bytes(16), 1, b"\x90\xc5\x00\x01a", 1)  # a length in two bytes that one would hold
@example(bytes(16), 1, b"\x90\xc6\x00\x00\x00\x01a", 1)
@example(bytes(16), 1, b"\xdc\x00\x01\xd9\x01a\xc4\x00", 1)
@FUZZ
def test_any_content_is_an_envelope_or_an_error(epoch, seq, content, codec):
    prefix = wire.envelope_prefix(DIGEST, codec)

    check_envelope(wire.encode_envelope(prefix, epoch, seq, 0, content), DIGEST, codec)


@given(st.data(), CODECS, SCHEMAS)
@FUZZ
def test_damaged_envelopes_are_refused_or_are_other_envelopes(data, codec, schema):
    damaged = data.draw(mutated(ENVELOPES.map(functools.partial(encode_envelope, digest=DIGEST, schema=schema))))

    check_envelope(damaged, DIGEST, codec, schema)


@given(ENVELOPES, SCHEMAS, st.data())
@FUZZ
def test_a_damaged_length_or_number_never_changes_a_value_silently(fields, schema, data):
    # Every bit of an envelope is of the header or of the content: each that is flipped shows, or is refused.
    valid = encode_envelope(fields, DIGEST, schema)
    at, bit = data.draw(st.integers(0, len(valid) - 1)), data.draw(st.integers(0, 7))
    damaged = bytearray(valid)
    damaged[at] ^= 1 << bit

    try:
        decoded = decode_envelope(bytes(damaged), DIGEST, fields[3], schema)
    except WireError:
        return
    assert decoded != fields


@given(ENVELOPES, DIGESTS, DIGESTS, CODECS, SCHEMAS)
@FUZZ
def test_the_envelope_of_another_key_is_refused(fields, digest, other, codec, schema):
    kept = slice(6 if schema else DIGEST_BYTES)  # of the digest, beside a schema
    assume(digest[kept] != other[kept])

    with pytest.raises(WireError, match="another key"):
        decode_envelope(encode_envelope(fields, digest, schema), other, codec, schema)
    with pytest.raises(WireError, match="another key"):
        decode_envelope(encode_envelope(fields, digest, schema), other, fields[3], schema)


# --- messages and sync replies ---


def check(decode, encode, data: bytes) -> None:
    """Decode to WireError, or to fields that are stable: encoded and decoded again they are the same."""
    try:
        fields = decode(data)
    except WireError:
        event("refused")
        return
    event("taken")
    # "Microseconds" of up to 16 digits are taken; with as many seconds they carry into a number of 17 digits.
    if getattr(fields, "time_us", 0) <= MAX_TIME:
        assert decode(encode(fields)) == fields


FORMS = pytest.mark.parametrize(
    ("decode", "encode", "fields"),
    [
        pytest.param(wire.decode_message, wire.encode_message, MESSAGES, id="message"),
        pytest.param(wire.decode_sync_reply, wire.encode_sync_reply, SYNC_REPLIES, id="sync"),
        pytest.param(wire.decode_receipt, lambda fields: wire.encode_receipt(*fields), RECEIPTS, id="receipt"),
    ],
)


@FORMS
@given(st.data())
@FUZZ
def test_fields_come_back(decode, encode, fields, data):
    original = data.draw(fields)

    assert decode(encode(original)) == original


@FORMS
@given(data=st.binary(max_size=200))
@FUZZ
def test_any_bytes_decode_or_are_an_error(decode, encode, fields, data):
    check(decode, encode, data)
    check(decode, encode, bytes((wire.MESSAGE_FORMAT,)) + data)


@FORMS
@given(data=st.data())
@FUZZ
def test_damaged_bytes_decode_or_are_an_error(decode, encode, fields, data):
    check(decode, encode, data.draw(mutated(fields.map(encode))))


ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), TEXT, st.binary()),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)
# Lists that are nearly right: each field is its own kind, or anything.
NEARLY = st.tuples(
    *[
        st.one_of(one, one, one, ANYTHING)
        for one in (
            st.integers(0, 6) | st.binary(max_size=9),
            EPOCHS | TEXT,
            SEQS.map(str) | EPOCHS,
            NONCES | SEQS.map(str),
            st.integers(0, MAX_DIGITS).map(str) | NONCES,
            st.integers(0, MAX_DIGITS).map(str),
            TEXT | st.integers(0, MAX_DIGITS).map(str),
            st.lists(TEXT | st.binary(max_size=9), max_size=4),
        )
    ]
)


@FORMS
@given(body=ANYTHING | NEARLY)
@FUZZ
def test_any_msgpack_decodes_or_is_an_error(decode, encode, fields, body):
    check(decode, encode, bytes((wire.MESSAGE_FORMAT,)) + msgpack.packb(body))


@given(MESSAGES)
@FUZZ
def test_what_a_script_puts_between_the_ends_of_a_message_comes_back(message):
    def text(number: int) -> bytes:
        digits = str(number).encode()
        return b"\xd9" + bytes((len(digits),)) + digits

    head, tail = wire.encode_message_ends(
        message.kind, message.origin, message.names, wants_receipts=message.wants_receipts
    )
    seconds, microseconds = divmod(message.time_us, 1_000_000)
    middle = b"\xc4\x10" + message.epoch + text(message.seq) + b"\xc4\x08" + message.nonce
    middle += b"\xc4\x08" + message.previous
    data = head + middle + text(seconds) + text(microseconds) + tail

    assert wire.decode_message(data) == message
