"""Envelopes, messages and sync replies: exact bytes out, and nothing but the documented forms in."""

from __future__ import annotations

import msgpack
import pytest

from coherent_cache import wire
from coherent_cache.keys import DIGEST_BYTES, MAX_TAG_BYTES, MAX_TAGS, key_digest
from coherent_cache.versions import EPOCH_BYTES, MAX_SEQ, NONCE_BYTES
from coherent_cache.wire import (
    CODE_LEASE,
    CODE_NOTHING,
    ENVELOPE_FORMAT,
    ENVELOPE_MAGIC,
    FORMAT,
    MESSAGE_FORMAT,
    PREFIX_BYTES,
    TOKEN_BYTES,
    Kind,
    Message,
    OtherSchema,
    SyncReply,
    UnknownFormat,
    WireError,
    compressed_prefix,
    decode_envelope,
    decode_message,
    decode_receipt,
    decode_sync_reply,
    encode_content,
    encode_envelope,
    encode_message,
    encode_message_ends,
    encode_receipt,
    encode_sync_reply,
    envelope_prefix,
    schema_bytes,
)

EPOCH = bytes(range(EPOCH_BYTES))
NONCE = bytes(range(100, 100 + NONCE_BYTES))
PREVIOUS = bytes(range(110, 110 + NONCE_BYTES))
DIGEST = bytes(range(200, 200 + DIGEST_BYTES))
# Offsets by the layout in the module's docstring.
DIGEST_AT, FLAGS_AT, SEQ_AT, EXPIRES_AT, HEADER_SIZE = 5, 14, 36, 53, 69
MARKS_AT = [2, 3, 4, 13, 15, 17, 18, 35, 52]
EXPIRES = 1_800_000_000_123
SECRET = b"hunter2-the-payload"


def envelope(*, tags=(), payload=b"payload", seq=7, expires_ms=EXPIRES, codec=1, digest=DIGEST, epoch=EPOCH) -> bytes:
    return encode_envelope(envelope_prefix(digest, codec), epoch, seq, expires_ms, encode_content(tags, payload))


def decode(data: bytes, *, digest=DIGEST, codec=1):
    """Decode as a reader does that expects ``codec``."""
    return decode_envelope(data, envelope_prefix(digest, codec))


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def message(**changes) -> Message:
    fields = {
        "kind": Kind.SET,
        "epoch": EPOCH,
        "seq": 7,
        "nonce": NONCE,
        "previous": PREVIOUS,
        "time_us": 1_800_000_000_000_042,
        "origin": "host-1-abc",
        "names": ("a", "b"),
    }
    return Message(**(fields | changes))


def sync_reply(**changes) -> SyncReply:
    fields = {
        "token": b"token",
        "status": "",
        "epoch": EPOCH,
        "seq": 7,
        "nonce": NONCE,
        "time_us": 1_800_000_000_000_042,
        "entries": (b"one", b"two"),
    }
    return SyncReply(**(fields | changes))


# What a decoder meets: the fields after the format byte, each of which a test can spoil.
MESSAGE_FIELDS = [1, EPOCH, "7", NONCE, PREVIOUS, "1800000000", "42", "host-1-abc", ["a", "b"]]
SYNC_FIELDS = [b"token", "", EPOCH, "7", NONCE, "1800000000", "42", [b"one", b"two"]]


def packed(fields, spoilt=None) -> bytes:
    changed = [spoilt[at] if spoilt and at in spoilt else field for at, field in enumerate(fields)]
    return bytes((MESSAGE_FORMAT,)) + msgpack.packb(changed)


# --- constants that other releases and the Lua scripts rely on ---


def test_the_numbers_of_the_wire_never_change():
    assert (ENVELOPE_MAGIC, ENVELOPE_FORMAT, MESSAGE_FORMAT, FORMAT) == (0xC1, 1, 1, 1)
    assert (EPOCH_BYTES, NONCE_BYTES, DIGEST_BYTES, MAX_SEQ) == (16, 8, 8, 9_007_199_254_740_991)
    assert {kind.name: kind.value for kind in Kind} == {
        "SET": 1,
        "DELETE": 2,
        "TOUCH": 3,
        "TAG": 4,
        "CLEAR": 5,
        "BATCH": 6,
        "RELEASE": 7,
    }
    assert wire._WANTS_RECEIPTS == 0x40
    assert all(kind < 0x40 for kind in Kind)
    assert (CODE_NOTHING, CODE_LEASE, TOKEN_BYTES) == (253, 254, 16)


def test_the_magic_byte_begins_nothing_else():
    with pytest.raises(msgpack.FormatError):
        msgpack.unpackb(bytes((ENVELOPE_MAGIC,)))
    with pytest.raises(UnicodeDecodeError):
        bytes((ENVELOPE_MAGIC, 0x80)).decode("utf-8")


# --- envelopes ---


def test_an_envelope_has_the_documented_layout():
    assert envelope() == b"".join(
        (
            bytes.fromhex("c1 01 98 c4 08"),
            DIGEST,
            bytes.fromhex("cc 00 cc 01 c4 10"),
            EPOCH,
            b"\xb00000000000000007",
            b"\xb00001800000000123",
            bytes.fromhex("90 c4 07"),
            b"payload",
        )
    )


def test_the_body_of_an_envelope_is_one_msgpack_array():
    fields = msgpack.unpackb(envelope(tags=("red", "grün"))[2:])

    assert fields == [DIGEST, 0, 1, EPOCH, "0" * 15 + "7", f"{EXPIRES:016d}", ["red", "grün"], b"payload"]


@pytest.mark.parametrize("codec", [0, 1, 255])
def test_what_envelopes_of_one_key_have_in_common_comes_first(codec):
    prefix = envelope_prefix(DIGEST, codec)

    assert len(prefix) == PREFIX_BYTES
    for changes in ({"seq": 8}, {"expires_ms": 0}, {"epoch": bytes(16)}, {"tags": ("t",)}, {"payload": b""}):
        assert envelope(codec=codec, **changes).startswith(prefix)


@pytest.mark.parametrize("codec", [0, 1, 2, 3, 255])
@pytest.mark.parametrize("tags", [(), ("t",), ("", "x" * MAX_TAG_BYTES, "ü€𝄞"), tuple(map(str, range(15)))])
def test_an_envelope_comes_back(tags, codec):
    data = envelope(tags=tags, codec=codec)

    # Whatever codec the reader expects: it may have been changed meanwhile.
    for expected in {codec, 1, 2}:
        assert decode(data, codec=expected) == (EPOCH, 7, EXPIRES, codec, tags, b"payload")


@pytest.mark.parametrize(
    ("count", "head"), [(0, "90"), (15, "9f"), (16, "dc0010"), (256, "dc0100"), (MAX_TAGS, "dc03e8")]
)
def test_the_number_of_tags_has_its_shortest_form(count, head):
    tags = tuple(f"tag{number}" for number in range(count))

    data = envelope(tags=tags)

    assert data[HEADER_SIZE:].startswith(bytes.fromhex(head))
    assert decode(data)[4] == tags


@pytest.mark.parametrize(
    ("length", "head"),
    [(0, "c400"), (255, "c4ff"), (256, "c50100"), (65_535, "c5ffff"), (65_536, "c600010000"), (2**20, "c600100000")],
)
def test_the_length_of_a_payload_has_its_shortest_form(length, head):
    payload = bytes(length)

    data = envelope(payload=payload)

    assert data[HEADER_SIZE + 1 :].startswith(bytes.fromhex(head))
    assert decode(data)[5] == payload


@pytest.mark.parametrize("seq", [1, 10**15, MAX_SEQ])
@pytest.mark.parametrize("expires_ms", [0, 1, 10**16 - 1])
def test_numbers_keep_all_their_digits(seq, expires_ms):
    for tags in ((), ("t",)):
        assert decode(envelope(seq=seq, expires_ms=expires_ms, tags=tags))[1:3] == (seq, expires_ms)


def test_every_truncation_of_an_envelope_is_refused():
    data = envelope(tags=("red", "green"))

    for length in range(len(data)):
        with pytest.raises(WireError):
            decode(data[:length])
    assert decode(data)[5] == b"payload"


def test_every_truncation_of_long_forms_is_refused():
    data = envelope(tags=tuple(map(str, range(16))), payload=bytes(65_536))

    for length in [*range(200), len(data) - 65_536, len(data) - 1]:
        with pytest.raises(WireError):
            decode(data[:length])


def test_bytes_after_the_payload_are_refused():
    with pytest.raises(WireError, match="overlong"):
        decode(envelope() + b"\0")


@pytest.mark.parametrize(
    "data", [b"", b"plain", b'{"json": 1}', msgpack.packb([1, 2]), "grün".encode(), b"\x80\x05K\x01."]
)
def test_what_another_program_wrote_is_not_an_envelope(data):
    with pytest.raises(WireError, match="not an envelope") as caught:
        decode(data)

    assert not isinstance(caught.value, UnknownFormat)


@pytest.mark.parametrize("number", [0, 2, 255])
def test_another_format_is_told_from_damage(number):
    with pytest.raises(UnknownFormat, match=f"format {number}, this release knows 1"):
        decode(patched(envelope(), 1, bytes((number,))))


def test_another_format_is_told_even_if_it_is_shorter():
    with pytest.raises(UnknownFormat):
        decode(b"\xc1\x02")
    with pytest.raises(WireError, match="truncated") as caught:
        decode(b"\xc1")
    assert not isinstance(caught.value, UnknownFormat)


@pytest.mark.parametrize("flags", [3, 7, 8, 9, 0x80, 0xFF])
def test_unknown_flags_are_another_format(flags):
    with pytest.raises(UnknownFormat, match=f"flags {flags:#x}"):
        decode(patched(envelope(), FLAGS_AT, bytes((flags,))))


@pytest.mark.parametrize("schema", [0, 3])
@pytest.mark.parametrize("compression", [0, 1, 2])
@pytest.mark.parametrize("codec", [1, 255])
def test_flags_tell_how_a_payload_is_compressed(codec, compression, schema):
    prefix = envelope_prefix(DIGEST, codec, schema)
    data = encode_envelope(compressed_prefix(prefix, compression), EPOCH, 7, 0, encode_content((), b"payload"))

    assert data[FLAGS_AT] == compression + (4 if schema else 0)
    assert decode_envelope(data, prefix) == (EPOCH, 7, 0, codec + 256 * compression, (), b"payload")
    # Nothing else of the layout depends on it.
    plain = encode_envelope(prefix, EPOCH, 7, 0, encode_content((), b"payload"))
    assert patched(data, FLAGS_AT, plain[FLAGS_AT : FLAGS_AT + 1]) == plain


@pytest.mark.parametrize(("schema", "number"), [(1, b"\0\1"), (258, b"\1\2"), (65_535, b"\xff\xff")])
def test_a_schema_takes_the_place_of_two_bytes_of_the_digest(schema, number):
    prefix = envelope_prefix(DIGEST, 1, schema)

    assert prefix == envelope_prefix(DIGEST, 1)[:11] + number + b"\xcc\x04" + envelope_prefix(DIGEST, 1)[15:]
    assert schema_bytes(schema) == number
    assert schema_bytes(0) == b""
    assert envelope_prefix(DIGEST, 1, 0) == envelope_prefix(DIGEST, 1)


@pytest.mark.parametrize(("written", "asked"), [(0, 3), (3, 0), (3, 4), (256, 1)])
@pytest.mark.parametrize("codec", [1, 2])
def test_another_schema_is_told_from_damage(written, asked, codec):
    data = encode_envelope(envelope_prefix(DIGEST, 1, written), EPOCH, 7, 0, encode_content((), b"payload"))

    with pytest.raises(OtherSchema, match="another schema"):
        decode_envelope(data, envelope_prefix(DIGEST, codec, asked))
    assert decode_envelope(data, envelope_prefix(DIGEST, codec, written))[5] == b"payload"


def test_a_number_that_looks_like_the_digest_is_still_a_schema():
    data = envelope()
    lookalike = int.from_bytes(DIGEST[6:], "big")

    with pytest.raises(OtherSchema):
        decode_envelope(data, envelope_prefix(DIGEST, 1, lookalike))


@pytest.mark.parametrize("schema", [0, 3])
def test_an_envelope_of_another_key_is_told_from_one_of_another_schema(schema):
    data = encode_envelope(envelope_prefix(DIGEST, 1, schema), EPOCH, 7, 0, encode_content((), b"payload"))
    other = b"\0" + DIGEST[1:]

    for asked in (0, 3, 4):
        with pytest.raises(WireError, match="another key") as caught:
            decode_envelope(data, envelope_prefix(other, 1, asked))
        assert not isinstance(caught.value, OtherSchema)


@pytest.mark.parametrize("at", MARKS_AT)
def test_each_mark_of_the_header_is_checked(at):
    data = envelope()

    with pytest.raises(WireError, match="damaged envelope header"):
        decode(patched(data, at, bytes((data[at] ^ 1,))))


def test_an_envelope_of_another_key_is_refused():
    mine, other = key_digest(b"mine"), key_digest(b"other")

    assert decode(envelope(digest=mine), digest=mine)[5] == b"payload"
    for codec in (1, 2):
        with pytest.raises(WireError, match="another key"):
            decode(envelope(digest=mine), digest=other, codec=codec)


@pytest.mark.parametrize("at", range(DIGEST_AT, DIGEST_AT + DIGEST_BYTES))
def test_each_byte_of_the_digest_counts(at):
    with pytest.raises(WireError, match="another key"):
        decode(patched(envelope(), at, b"\0"))


@pytest.mark.parametrize("text", [b"+000000000000007", b"-000000000000007", b" 000000000000007", b"00000000_0000007"])
@pytest.mark.parametrize("at", [SEQ_AT, EXPIRES_AT])
def test_numbers_are_digits_alone(at, text):
    with pytest.raises(WireError, match="number"):
        decode(patched(envelope(), at, text))


@pytest.mark.parametrize("seq", [0, MAX_SEQ + 1, 10**16 - 1])
def test_a_version_out_of_range_is_refused(seq):
    with pytest.raises(WireError, match="out of range"):
        decode(envelope(seq=seq))


@pytest.mark.parametrize("head", ["80", "a0", "c0", "dd", "8f"])
def test_tags_are_an_array(head):
    with pytest.raises(WireError, match="damaged tags"):
        decode(patched(envelope(), HEADER_SIZE, bytes.fromhex(head)))


@pytest.mark.parametrize("mark", ["a3", "da", "c4"])
def test_a_tag_is_a_string_with_one_byte_of_length(mark):
    data = envelope(tags=("red",))

    with pytest.raises(WireError, match="damaged tags"):
        decode(patched(data, HEADER_SIZE + 1, bytes.fromhex(mark)))


def test_a_tag_longer_than_the_rest_is_refused():
    data = envelope(tags=("red",), payload=b"")

    with pytest.raises(WireError, match="truncated tags"):
        decode(patched(data, HEADER_SIZE + 2, b"\xff"))


def test_more_tags_announced_than_there_are_is_refused():
    with pytest.raises(WireError, match="truncated tags"):
        decode(envelope()[:HEADER_SIZE] + b"\x91")


def test_a_tag_that_is_no_utf8_is_refused():
    data = envelope(tags=("red",))

    with pytest.raises(WireError, match="UTF-8"):
        decode(patched(data, HEADER_SIZE + 3, b"\xff"))


@pytest.mark.parametrize("head", ["c0", "d9", "a7", "c7"])
def test_a_payload_is_binary(head):
    with pytest.raises(WireError, match="payload"):
        decode(patched(envelope(), HEADER_SIZE + 1, bytes.fromhex(head)))


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("90c401ff", "dc0000c401ff"),  # no tags
        ("91d90174c400", "dc0001d90174c400"),  # one tag
        ("90c401ff", "90c50001ff"),  # payload of one byte
        ("90c401ff", "90c600000001ff"),
    ],
)
def test_only_the_shortest_form_of_a_length_is_an_envelope(short, long):
    # One envelope, one spelling: what is read and stored again, as touch does, has the bytes it had.
    start = envelope()[:HEADER_SIZE]
    assert decode(start + bytes.fromhex(short))

    with pytest.raises(WireError):
        decode(start + bytes.fromhex(long))


# --- messages ---


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("names", [(), ("k",), ("ü€𝄞", "\0", "a b"), tuple(f"key{n}" for n in range(1000))])
def test_a_message_comes_back(kind, names):
    original = message(kind=kind, names=names)

    decoded = decode_message(encode_message(original))

    assert decoded == original
    assert type(decoded.kind) is Kind


@pytest.mark.parametrize("kind", Kind)
def test_p12_a_bit_of_the_kind_asks_for_receipts(kind):
    original = message(kind=kind, wants_receipts=True)
    plain, asking = encode_message(original._replace(wants_receipts=False)), encode_message(original)

    assert decode_message(asking) == original
    assert (len(asking), asking[2]) == (len(plain), plain[2] | 0x40)
    assert encode_message_ends(kind, "me", (), wants_receipts=True)[0] == asking[:3]


def test_a_message_has_the_documented_layout():
    data = encode_message(message())

    assert data[0] == MESSAGE_FORMAT
    assert msgpack.unpackb(data[1:]) == MESSAGE_FIELDS


def test_the_ends_of_a_message_enclose_what_the_script_writes():
    head, tail = encode_message_ends(Kind.TAG, "me", ("red",))

    middle = b"".join(map(msgpack.packb, (EPOCH, "7", NONCE, PREVIOUS, "1", "000042")))
    decoded = decode_message(head + middle + tail)

    assert decoded == message(kind=Kind.TAG, time_us=1_000_042, origin="me", names=("red",))


def test_the_numbers_of_a_message_may_have_any_msgpack_length():
    # The scripts write strings with one byte of length, always: plain Lua finds that simplest.
    def str8(text: str) -> bytes:
        return b"\xd9" + bytes((len(text),)) + text.encode()

    head, tail = encode_message_ends(Kind.SET, "host-1-abc", ("a", "b"))
    middle = b"\xc4\x10" + EPOCH + str8("7") + b"\xc4\x08" + NONCE + b"\xc4\x08" + PREVIOUS
    middle += str8("1800000000") + str8("42")

    assert decode_message(head + middle + tail) == message(time_us=1_800_000_000_000_042)


@pytest.mark.parametrize("seq", [1, 10**15, MAX_SEQ])
def test_a_message_keeps_all_digits_of_its_position(seq):
    assert decode_message(encode_message(message(seq=seq))).seq == seq


@pytest.mark.parametrize("data", [b"\x00", b"\x02\x90", b"hello", b"\xc1\x01", b"{}"])
def test_a_message_of_another_format_is_told_from_damage(data):
    with pytest.raises(UnknownFormat, match=f"message of format {data[0]}, this release knows 1"):
        decode_message(data)


@pytest.mark.parametrize("kind", [0, 8, 255, -1, 2**40, 0x40, 0x48, 0x80, 0x81, 0x140, -0x40, -0x3F])
def test_a_message_of_an_unknown_kind_is_another_format(kind):
    with pytest.raises(UnknownFormat, match="kind"):
        decode_message(packed(MESSAGE_FIELDS, {0: kind}))


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, "1"),
        (0, 1.0),
        (0, None),
        (0, True),
        (1, "0123456789abcdef"),
        (2, 7),
        (2, b"7"),
        (3, "12345678"),
        (4, "12345678"),
        (5, 1_800_000_000),
        (6, 42),
        (7, b"host"),
        (7, None),
        (8, "ab"),
        (8, {"a": 1}),
        (8, None),
    ],
)
def test_a_message_with_a_field_of_another_type_is_refused(at, value):
    with pytest.raises(WireError, match="other types"):
        decode_message(packed(MESSAGE_FIELDS, {at: value}))


@pytest.mark.parametrize("names", [[b"a"], ["a", 1], ["a", None], [["a"]]])
def test_a_message_with_a_name_that_is_no_text_is_refused(names):
    with pytest.raises(WireError, match="names"):
        decode_message(packed(MESSAGE_FIELDS, {8: names}))


@pytest.mark.parametrize("length", [0, 8, 9, 10])
def test_a_message_has_neither_fewer_nor_more_fields(length):
    fields = [*MESSAGE_FIELDS, 1][:length]
    if length == len(MESSAGE_FIELDS):
        assert decode_message(packed(fields)) == message()
    else:
        with pytest.raises(WireError):
            decode_message(packed(fields))


@pytest.mark.parametrize("decoder", [decode_message, decode_sync_reply, decode_receipt])
@pytest.mark.parametrize("body", [5, "text", {"a": 1}, None, b"bytes"])
def test_what_is_no_array_is_refused(decoder, body):
    with pytest.raises(WireError, match="other types"):
        decoder(bytes((MESSAGE_FORMAT,)) + msgpack.packb(body))


@pytest.mark.parametrize("length", [0, EPOCH_BYTES - 1, EPOCH_BYTES + 1])
def test_an_epoch_of_another_length_is_refused(length):
    with pytest.raises(WireError, match="another length"):
        decode_message(packed(MESSAGE_FIELDS, {1: bytes(length)}))
    with pytest.raises(WireError, match="another length"):
        decode_sync_reply(packed(SYNC_FIELDS, {2: bytes(length)}))


@pytest.mark.parametrize("length", [0, NONCE_BYTES - 1, NONCE_BYTES + 1])
def test_a_nonce_of_another_length_is_refused(length):
    with pytest.raises(WireError, match="another length"):
        decode_message(packed(MESSAGE_FIELDS, {3: bytes(length)}))
    with pytest.raises(WireError, match="another length"):
        decode_message(packed(MESSAGE_FIELDS, {4: bytes(length)}))
    with pytest.raises(WireError, match="another length"):
        decode_sync_reply(packed(SYNC_FIELDS, {4: bytes(length)}))


@pytest.mark.parametrize("text", ["", "+7", "-7", " 7", "7 ", "1_0", "7.0", "1e3", "٣", "²", "0x7", "1" * 17])
@pytest.mark.parametrize("at", [2, 5, 6])
def test_the_numbers_of_a_message_are_digits_alone(at, text):
    with pytest.raises(WireError, match="number"):
        decode_message(packed(MESSAGE_FIELDS, {at: text}))
    with pytest.raises(WireError, match="number"):
        decode_sync_reply(packed(SYNC_FIELDS, {at + (at == 2): text}))


@pytest.mark.parametrize("seq", ["0", str(MAX_SEQ + 1)])
def test_a_position_out_of_range_is_refused(seq):
    with pytest.raises(WireError, match="out of range"):
        decode_message(packed(MESSAGE_FIELDS, {2: seq}))


@pytest.mark.parametrize(
    ("decoder", "what"),
    [(decode_message, "message"), (decode_sync_reply, "sync reply"), (decode_receipt, "receipt")],
)
def test_no_bytes_at_all_are_refused(decoder, what):
    with pytest.raises(WireError, match=f"empty {what}"):
        decoder(b"")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x98",
        b"\x91" * 5000,  # deeper than any parser goes
        b"\xdd\xff\xff\xff\xff",  # four billion elements announced
        b"\xc6\xff\xff\xff\xff",
        b"\x81\x90\x01",  # a map with a list as its key
        b"\xa1\xff",  # text that is no UTF-8
        b"\x90\x90",  # trailing bytes
        msgpack.packb(MESSAGE_FIELDS) + b"\0",
    ],
)
@pytest.mark.parametrize("decoder", [decode_message, decode_sync_reply])
def test_damaged_msgpack_is_refused(decoder, body):
    with pytest.raises(WireError, match="not msgpack"):
        decoder(bytes((MESSAGE_FORMAT,)) + body)


def test_every_truncation_of_a_message_is_refused():
    data = encode_message(message())

    for length in range(len(data)):
        with pytest.raises(WireError):
            decode_message(data[:length])


# --- sync replies ---


@pytest.mark.parametrize("entries", [(), (b"",), (bytes(300), b"\x01\x90"), tuple([b"e"] * 2001)])
@pytest.mark.parametrize("status", ["", "READONLY"])
@pytest.mark.parametrize("seq", [0, 1, MAX_SEQ])
def test_a_sync_reply_comes_back(seq, status, entries):
    original = sync_reply(seq=seq, status=status, entries=entries)

    assert decode_sync_reply(encode_sync_reply(original)) == original


def test_a_sync_reply_has_the_documented_layout():
    data = encode_sync_reply(sync_reply())

    assert data[0] == MESSAGE_FORMAT
    assert msgpack.unpackb(data[1:]) == SYNC_FIELDS


def test_every_truncation_of_a_sync_reply_is_refused():
    data = encode_sync_reply(sync_reply())

    for length in range(len(data)):
        with pytest.raises(WireError):
            decode_sync_reply(data[:length])


def test_a_sync_reply_of_another_format_is_told_from_damage():
    with pytest.raises(UnknownFormat, match="sync reply of format 2"):
        decode_sync_reply(b"\x02\x90")


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, "token"), (1, b""), (2, "epoch"), (3, 7), (4, "12345678"), (5, 1), (6, 1), (7, b"one"), (7, None)],
)
def test_a_sync_reply_with_a_field_of_another_type_is_refused(at, value):
    with pytest.raises(WireError, match="other types"):
        decode_sync_reply(packed(SYNC_FIELDS, {at: value}))


@pytest.mark.parametrize("entries", [["one"], [b"one", 1], [None]])
def test_a_sync_reply_with_an_entry_that_is_no_bytes_is_refused(entries):
    with pytest.raises(WireError, match="entries"):
        decode_sync_reply(packed(SYNC_FIELDS, {7: entries}))


@pytest.mark.parametrize("length", [0, 7, 9])
def test_a_sync_reply_has_neither_fewer_nor_more_fields(length):
    with pytest.raises(WireError):
        decode_sync_reply(packed([*SYNC_FIELDS, 1][:length]))


def test_a_message_is_no_sync_reply_and_the_other_way_round():
    with pytest.raises(WireError):
        decode_sync_reply(encode_message(message()))
    with pytest.raises(WireError):
        decode_message(encode_sync_reply(sync_reply()))


# --- errors ---


# --- receipts ---


@pytest.mark.parametrize("member", ["", "host-1-abc:0123456789abcdef", "x" * 137])
def test_p12_a_receipt_comes_back(member):
    data = encode_receipt(NONCE, member)

    assert decode_receipt(data) == (NONCE, member)
    assert data[0] == MESSAGE_FORMAT
    assert msgpack.unpackb(data[1:]) == [NONCE, member]


def test_every_truncation_of_a_receipt_is_refused():
    data = encode_receipt(NONCE, "me")

    for length in range(len(data)):
        with pytest.raises(WireError):
            decode_receipt(data[:length])


@pytest.mark.parametrize(
    "fields", [[], [NONCE], [NONCE, "me", 1], ["n" * 8, "me"], [NONCE, b"me"], [NONCE[:7], "me"], [NONCE + b"x", "me"]]
)
def test_a_receipt_is_a_nonce_and_a_text(fields):
    with pytest.raises(WireError):
        decode_receipt(packed(fields))


def test_errors_are_value_errors_of_one_family():
    assert issubclass(UnknownFormat, WireError)
    assert issubclass(WireError, ValueError)


def test_errors_never_show_the_bytes():
    whole = envelope(payload=SECRET, tags=("hunter2-tag",))
    text = bytes((MESSAGE_FORMAT,)) + msgpack.packb(SECRET)
    damaged = [
        whole[:-1],
        whole + SECRET,
        patched(whole, HEADER_SIZE, b"\x80"),
        SECRET,
        patched(whole, SEQ_AT, b"h" * 16),
    ]

    errors = []
    for data in damaged:
        with pytest.raises(WireError) as caught:
            decode(data)
        errors.append(caught.value)
    for decoder in (decode_message, decode_sync_reply):
        with pytest.raises(WireError) as caught:
            decoder(text)
        errors.append(caught.value)
        with pytest.raises(WireError) as caught:
            decoder(text[:-1])
        errors.append(caught.value)

    for error in errors:
        assert "hunter2" not in str(error)
        assert error.__cause__ is None  # nor those of the parser
