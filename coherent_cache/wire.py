r"""What goes over the wire: envelopes (values in Redis), messages (invalidations) and sync replies, to and from bytes.

All three start with a format byte and go on with one msgpack array. Decoding is strict: another length, another type,
trailing bytes or a number out of range is a :class:`WireError`, and no decoder raises anything else. Numbers that Lua
writes or reads are decimal text: that costs the server less than any binary form that plain Lua can make.

Envelope, the value of a Redis key. The header has a fixed layout, because the Lua scripts write the middle of it and
read it back. What one key's envelopes have in common comes first, so that one comparison checks it (offsets from 0)::

    0      c1        never starts a msgpack value, a JSON text or valid UTF-8: tells foreign bytes
    1      01        format
    2      98        array of 8
    3-12   c4 08 ..  digest of the key, 8 bytes
    13-14  cc ..     flags
    15-16  cc ..     codec of the payload, see serializers
    17-34  c4 10 ..  epoch, 16 bytes
    35-51  b0 ..     seq, 16 digits
    52-68  b0 ..     when it expires, milliseconds of the server's clock, 16 digits; 0 for never
    69-    9n | dc   array of tags, each d9 (length in one byte)
           c4-c6     payload, binary

The expiry is the one that Redis was given, by the same clock; so that a read needs no PTTL per key.

Flags: bits 0 and 1 say how the payload is compressed (0 not at all, 1 zlib, 2 zstd). With bit 2, the value is of a
schema other than 0, whose number (u16) takes the place of the digest's last two bytes: so it lies in what one key's
envelopes have in common, and a reader of the same schema checks it for nothing. The other bits must be 0.

Two codecs stand for what is no value (P11). A *lease* lies where the value will be that its holder is loading: no tags,
its payload is the holder's random token, its seq one above the clock that it was taken at, its expiry 0, for only
Redis' own expiry counts. *Nothing* says that a loader has found no such thing; its payload is empty. Both are absent
for every read.

Message, published and logged by every write::

    01, then [kind, epoch, seq, nonce, previous nonce, seconds, microseconds, origin, names]

``seq``, ``seconds`` and ``microseconds`` (the server's clock) are decimal text, ``origin`` is the instance that wrote,
``names`` are user keys or tags. A kind with the bit 0x40 set asks everybody who has applied the message for a receipt
(P12)::

    01, then [nonce, member]

``nonce`` is the message's, ``member`` the one who has applied it.

Sync reply, the answer to a heartbeat or resync (see ``sync.lua``)::

    01, then [token, status, epoch, seq, nonce, seconds, microseconds, [message, ...]]
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgpack

from coherent_cache.keys import DIGEST_BYTES
from coherent_cache.versions import EPOCH_BYTES, MAX_SEQ, NONCE_BYTES

ENVELOPE_MAGIC: Final = 0xC1
ENVELOPE_FORMAT: Final = 1
MESSAGE_FORMAT: Final = 1
FORMAT: Final = 1
"""Format of the namespace as a whole; checked at connect together with the number of shards."""

PREFIX_BYTES: Final = 19
"""Length of what precedes the epoch in an envelope."""

FLAGS_AT: Final = 14
"""Offset of the flags in an envelope."""

COMPRESSION_MASK: Final = 0x03
FLAG_SCHEMA: Final = 0x04

STAMP: Final = slice(PREFIX_BYTES, 70)
"""The part of an envelope that tells its epoch, seq and expiry, and that it has no tags, if it has none."""

CODING_SHIFT: Final = 8
"""A decoded envelope tells its codec, and above these bits its compression, as one number: one comparison is enough."""

CODE_LEASE: Final = 254
"""Codec of an envelope that is a lease (P11)."""

CODE_NOTHING: Final = 253
"""Codec of an envelope that says "no such thing" (P11)."""

TOKEN_BYTES: Final = 16
"""Length of a lease's token."""

_MAGIC: Final = bytes((ENVELOPE_MAGIC,))
_MESSAGE_FORMAT_BYTE: Final = bytes((MESSAGE_FORMAT,))
_DIGITS: Final = 16
_HEADER: Final = struct.Struct(f">5s{DIGEST_BYTES}sBBBB2s{EPOCH_BYTES}sc{_DIGITS}sc{_DIGITS}s")
_START: Final = bytes((ENVELOPE_MAGIC, ENVELOPE_FORMAT, 0x98, 0xC4, DIGEST_BYTES))
_EPOCH_HEAD: Final = bytes((0xC4, EPOCH_BYTES))
_STR16: Final = bytes((0xA0 | _DIGITS,))
_UINT8: Final = 0xCC
_KNOWN_FLAGS: Final = COMPRESSION_MASK | FLAG_SCHEMA
_UNKNOWN_COMPRESSION: Final = 3
_DIGEST_AT: Final = 5
_SCHEMA_AT: Final = 11
_CODEC_AT: Final = 16
_LAYOUT: Final = (_START, _UINT8, _UINT8, _EPOCH_HEAD, _STR16, _STR16)
_STR16_BYTE: Final = _STR16[0]
_NO_TAGS_BYTE: Final = 0x90
_COMMON: Final = struct.Struct(f">{PREFIX_BYTES}s{EPOCH_BYTES}sB{_DIGITS}sB{_DIGITS}sBBH")
"""The header of an envelope without tags, the form of its payload, and the two bytes after that."""
_COMMON_BYTES: Final = _COMMON.size
_unpack_common: Final = _COMMON.unpack_from

_WANTS_RECEIPTS: Final = 0x40
"""Bit of a message's kind."""

_NO_TAGS: Final = b"\x90"
_STR8: Final = 0xD9
_BIN_FORMS: Final = {0xC4: (1, 0), 0xC5: (2, 0x100), 0xC6: (4, 0x1_0000)}
"""Bytes that a payload's length has, and the least length written so: one envelope has one spelling."""


_MESSAGE_TYPES: Final[list[type]] = [int, bytes, str, bytes, bytes, str, str, str, list]
_SYNC_TYPES: Final[list[type]] = [bytes, str, bytes, str, bytes, str, str, list]
_RECEIPT_TYPES: Final[list[type]] = [bytes, str]
_ONLY_TEXT: Final[set[type]] = {str}


class WireError(ValueError):
    """Bytes are not of the expected form. The text says what is wrong, never the bytes."""


class UnknownFormat(WireError):
    """The bytes are of a format that this release does not know: probably a newer one's."""


class OtherSchema(WireError):
    """A value of another schema than the one that was asked for: as good as absent."""


class Kind(IntEnum):
    """What a message reports."""

    SET = 1
    DELETE = 2
    TOUCH = 3
    TAG = 4
    CLEAR = 5
    BATCH = 6
    RELEASE = 7  # a lease was given up: nothing changed, but who waits for it asks again (P11)


_KINDS: Final[dict[int, Kind]] = {kind.value: kind for kind in Kind}

Envelope = tuple[bytes, int, int, int, tuple[str, ...], bytes]
"""A decoded envelope: epoch, seq, expiry (milliseconds of the server's clock, 0 for never), coding, tags, payload.

The coding is the codec plus 256 times the compression, see the flags in the description of the module.

A plain tuple: reads make a hundred at a time.
"""


class Message(NamedTuple):
    """A decoded invalidation message.

    Attributes:
        kind: what happened.
        epoch: history that the write belongs to.
        seq: position in that history.
        nonce: 8 random bytes that name this write, to tell two histories with equal numbers apart.
        previous: nonce of the write before it; of the first, the first half of the epoch.
        time_us: server clock in microseconds when the write was executed.
        origin: id of the instance that wrote.
        names: user keys; for ``Kind.TAG`` tags; for ``Kind.CLEAR`` nothing.
        wants_receipts: whether the writer waits to hear who has applied it (P12).
    """

    kind: Kind
    epoch: bytes
    seq: int
    nonce: bytes
    previous: bytes
    time_us: int
    origin: str
    names: tuple[str, ...]
    wants_receipts: bool = False


@dataclass(frozen=True, slots=True)
class SyncReply:
    """A decoded answer to a heartbeat or resync.

    Attributes:
        token: the request's token, so that an answer to another request is not taken for this one's.
        status: empty if the server accepts writes, else the error code it answers writes with, e.g. ``READONLY``.
        epoch: history that the shard is in.
        seq: last position of that history.
        nonce: nonce of the write at that position.
        time_us: server clock in microseconds.
        entries: messages of the log from the asked position on, undecoded.
    """

    token: bytes
    status: str
    epoch: bytes
    seq: int
    nonce: bytes
    time_us: int
    entries: tuple[bytes, ...]


def envelope_prefix(digest: bytes, codec: int, schema: int = 0) -> bytes:
    """Return what the uncompressed envelopes of one key, codec and schema have in common: all that precedes the epoch.

    Args:
        digest: digest of the key.
        codec: number of the codec.
        schema: number of the schema, from 0 to 65,535.
    """
    flags = 0
    if schema:
        flags, digest = FLAG_SCHEMA, digest[: _SCHEMA_AT - _DIGEST_AT] + schema_bytes(schema)
    return b"".join((_START, digest, bytes((_UINT8, flags, _UINT8, codec)), _EPOCH_HEAD))


def schema_bytes(schema: int) -> bytes:
    """Return a schema's number as an envelope holds it: two bytes, none for 0."""
    return schema.to_bytes(2, "big") if schema else b""


def compressed_prefix(prefix: bytes, compression: int) -> bytes:
    """Return what precedes the epoch of an envelope whose payload is compressed.

    Args:
        prefix: :func:`envelope_prefix` of the key.
        compression: how, see the flags in the description of the module.
    """
    return b"".join((prefix[:FLAGS_AT], bytes((prefix[FLAGS_AT] | compression,)), prefix[FLAGS_AT + 1 :]))


def coded_prefix(prefix: bytes, codec: int) -> bytes:
    """Return what precedes the epoch of an envelope of another codec.

    Args:
        prefix: :func:`envelope_prefix` of the key.
        codec: number of the codec.
    """
    return b"".join((prefix[:_CODEC_AT], bytes((codec,)), prefix[_CODEC_AT + 1 :]))


def encode_content(tags: tuple[str, ...], payload: bytes) -> bytes:
    """Encode what follows the expiry in an envelope: tags and payload."""
    if not tags:
        return b"".join((_NO_TAGS, _bin_head(len(payload)), payload))
    parts = [_array_head(len(tags))]
    for tag in tags:
        encoded = tag.encode("utf-8")
        parts += (bytes((_STR8, len(encoded))), encoded)
    parts += (_bin_head(len(payload)), payload)
    return b"".join(parts)


def encode_envelope(prefix: bytes, epoch: bytes, seq: int, expires_ms: int, content: bytes) -> bytes:
    """Encode a whole envelope, as the scripts do (tests and simulator need it)."""
    return b"".join((prefix, epoch, _STR16, b"%016d" % seq, _STR16, b"%016d" % expires_ms, content))


def decode_envelope(data: bytes, prefix: bytes) -> Envelope:
    """Decode an envelope.

    Args:
        data: what Redis holds.
        prefix: :func:`envelope_prefix` of the key that was asked for, with its schema, and the codec to be expected.

    Raises:
        OtherSchema: a value of this key, of another schema than the prefix says.
        UnknownFormat: an envelope of a format that this release does not know.
        WireError: not an envelope, a damaged one, or another key's.
    """
    # The common case first, by few comparisons: the expected codec and schema, not compressed, no tags, a payload of
    # 1 byte to 64 KiB. Whatever differs from it in anything is judged field by field.
    size = len(data)
    if size > _COMMON_BYTES:
        start, epoch, mark, seq_text, expires_mark, expires, tags, form, length = _unpack_common(data)
        if (
            start == prefix
            and mark == expires_mark == _STR16_BYTE
            and tags == _NO_TAGS_BYTE
            and seq_text.isdigit()
            and expires.isdigit()
            and 0 < (seq := int(seq_text)) <= MAX_SEQ
        ):
            if form == 0xC5 and size == 73 + length and length > 0xFF:
                return epoch, seq, int(expires), prefix[_CODEC_AT], (), data[73:]
            if form == 0xC4 and size == 72 + (length >> 8):
                return epoch, seq, int(expires), prefix[_CODEC_AT], (), data[72:]
    return _decode_envelope(data, prefix)


def decode_header(data: bytes) -> tuple[bytes, int, int]:
    """Decode epoch, seq and codec from the first 70 bytes of an envelope, of whatever key and schema.

    Raises:
        WireError: not an envelope, or a damaged one.
    """
    if len(data) < _HEADER.size or data[:1] != _MAGIC:
        raise WireError("not an envelope")
    (
        start, _, flags_mark, _, codec_mark, codec, epoch_head, epoch, mark, seq_text, expires_mark, expires_text,
    ) = _HEADER.unpack_from(data)  # fmt: skip
    if (start, flags_mark, codec_mark, epoch_head, mark, expires_mark) != _LAYOUT:
        raise WireError("damaged envelope header")
    seq = _number(seq_text)
    _number(expires_text)
    if not 0 < seq <= MAX_SEQ:
        raise WireError("version out of range")
    return epoch, seq, codec


def decode_twin(data: bytes, prefix: bytes) -> bytes | None:
    """Return the payload of an envelope that has the stamp of another, known one: an envelope's bytes at :data:`STAMP`.

    What one bulk write stored has one version and one expiry: these need not be decoded and judged a hundred times.

    Args:
        data: what Redis holds, with the stamp of an envelope without tags that was decoded.
        prefix: as for :func:`decode_envelope`.

    Returns:
        None if it is of another key, codec, compression or schema, is damaged, or has a payload of none or more than
        64 KiB: it must be decoded.
    """
    size = len(data)
    if size > _COMMON_BYTES and data[:PREFIX_BYTES] == prefix:
        form = data[70]
        if form == 0xC5 and size == 73 + (data[71] << 8 | data[72]) and size > 73 + 0xFF:
            return data[73:]
        if form == 0xC4 and size == 72 + data[71]:
            return data[72:]
    return None


def _decode_envelope(data: bytes, prefix: bytes) -> Envelope:
    if data[:1] != _MAGIC:
        raise WireError("not an envelope")
    if len(data) > 1 and data[1] != ENVELOPE_FORMAT:
        raise UnknownFormat(f"envelope of format {data[1]}, this release knows {ENVELOPE_FORMAT}")
    if len(data) < _HEADER.size:
        raise WireError("truncated envelope")
    (
        start, _, flags_mark, flags, codec_mark, codec,
        epoch_head, epoch, mark, seq_text, expires_mark, expires_text,
    ) = _HEADER.unpack_from(data)  # fmt: skip
    if (start, flags_mark, codec_mark, epoch_head, mark, expires_mark) != _LAYOUT:
        raise WireError("damaged envelope header")
    compression = flags & COMPRESSION_MASK
    if flags & ~_KNOWN_FLAGS or compression == _UNKNOWN_COMPRESSION:
        raise UnknownFormat(f"envelope with flags {flags:#x}, which this release does not know")
    _check_key_and_schema(data, prefix, (flags ^ prefix[FLAGS_AT]) & FLAG_SCHEMA)
    seq, expires_ms = _number(seq_text), _number(expires_text)
    if not 0 < seq <= MAX_SEQ:
        raise WireError("version out of range")
    tags, end = _decode_tags(data, _HEADER.size)
    payload_start, length = _decode_bin_head(data, end)
    if payload_start + length != len(data):
        raise WireError("truncated or overlong payload")
    return epoch, seq, expires_ms, codec | compression << CODING_SHIFT, tags, data[payload_start:]


def _check_key_and_schema(data: bytes, prefix: bytes, differ: int) -> None:
    """Compare what is left of the digest beside a schema, then the schema.

    Args:
        data: an envelope.
        prefix: what it should begin with, flags and codec aside.
        differ: whether only one of them names a schema.
    """
    if data[_DIGEST_AT:_SCHEMA_AT] != prefix[_DIGEST_AT:_SCHEMA_AT]:
        raise WireError("envelope of another key")
    if differ:
        raise OtherSchema("envelope of another schema")
    if data[_SCHEMA_AT : _DIGEST_AT + DIGEST_BYTES] != prefix[_SCHEMA_AT : _DIGEST_AT + DIGEST_BYTES]:
        if prefix[FLAGS_AT] & FLAG_SCHEMA:
            raise OtherSchema("envelope of another schema")
        raise WireError("envelope of another key")


def newer_head(data: bytes | None) -> bytes | None:
    """Return, as a script does, the first two bytes of an envelope of a format that this release does not know."""
    return (
        data[:2] if data is not None and data[:1] == _MAGIC and len(data) > 1 and data[1] != ENVELOPE_FORMAT else None
    )


def encode_message_ends(
    kind: Kind, origin: str, names: tuple[str, ...], *, wants_receipts: bool = False
) -> tuple[bytes, bytes]:
    """Encode what precedes and follows epoch, seq, nonces and time in a message; a script writes these."""
    head = _MESSAGE_FORMAT_BYTE + bytes((0x99, kind | _WANTS_RECEIPTS if wants_receipts else kind))
    return head, _packed(origin) + msgpack.Packer().pack(names)


_unpackb: Final = msgpack.unpackb  # by default as strict as it can be
_new_tuple: Final = tuple.__new__

_packed: Final = lru_cache(maxsize=64)(msgpack.packb)
"""Packs what comes again and again: origins."""


def encode_message(message: Message) -> bytes:
    """Encode a whole message, as the scripts do (tests and simulator need it)."""
    head, tail = encode_message_ends(message.kind, message.origin, message.names, wants_receipts=message.wants_receipts)
    seconds, microseconds = divmod(message.time_us, 1_000_000)
    fields = (message.epoch, str(message.seq), message.nonce, message.previous, str(seconds), str(microseconds))
    middle = b"".join(map(msgpack.packb, fields))
    return head + middle + tail


def decode_message(data: bytes) -> Message:
    """Decode an invalidation message.

    Raises:
        UnknownFormat: a message of a format or kind that this release does not know.
        WireError: anything else that is no message.
    """
    # Every message of the fleet comes through here: what is the case nearly always is asked first.
    fields = unpack_fields(data, _MESSAGE_TYPES, "message")
    number, epoch, seq, nonce, previous, seconds, microseconds, origin, names = fields
    kind, wants_receipts = _KINDS.get(number), False
    if kind is None:
        wants_receipts = number >= 0 and bool(number & _WANTS_RECEIPTS)
        kind = _KINDS.get(number - _WANTS_RECEIPTS)
        if kind is None or not wants_receipts:
            raise UnknownFormat(f"message of kind {number}")
    if (type(names[0]) is not str) if len(names) == 1 else (names and set(map(type, names)) != _ONLY_TEXT):
        raise WireError("a message's names are not all text")
    position = _position(epoch, seq, nonce)
    if not position:
        raise WireError("a version is out of range")
    if len(previous) != NONCE_BYTES:
        raise WireError("a nonce is of another length")
    time_us = _number(seconds) * 1_000_000 + _number(microseconds)
    message = (kind, epoch, position, nonce, previous, time_us, origin, tuple(names), wants_receipts)
    return _new_tuple(Message, message)  # as Message(*message), in a fifth of the time


def encode_receipt(nonce: bytes, member: str) -> bytes:
    """Encode a receipt: this member has applied the message with this nonce (P12)."""
    return _MESSAGE_FORMAT_BYTE + bytes(msgpack.packb([nonce, member]))


def decode_receipt(data: bytes) -> tuple[bytes, str]:
    """Decode a receipt to nonce and member.

    Raises:
        UnknownFormat: a receipt of a format that this release does not know.
        WireError: anything else that is no receipt.
    """
    nonce, member = unpack_fields(data, _RECEIPT_TYPES, "receipt")
    if len(nonce) != NONCE_BYTES:
        raise WireError("a nonce is of another length")
    return nonce, member


def encode_sync_reply(reply: SyncReply) -> bytes:
    """Encode a sync reply, as the script does (tests and simulator need it)."""
    seconds, microseconds = divmod(reply.time_us, 1_000_000)
    fields = (
        reply.token, reply.status, reply.epoch, str(reply.seq), reply.nonce, str(seconds), str(microseconds),
        reply.entries,
    )  # fmt: skip
    return _MESSAGE_FORMAT_BYTE + bytes(msgpack.packb(fields))


def decode_sync_reply(data: bytes) -> SyncReply:
    """Decode the answer to a heartbeat or resync.

    Raises:
        WireError: anything that is none.
    """
    fields = unpack_fields(data, _SYNC_TYPES, "sync reply")
    token, status, epoch, seq, nonce, seconds, microseconds, entries = fields
    if entries and set(map(type, entries)) != {bytes}:
        raise WireError("a sync reply's entries are not all bytes")
    position = _position(epoch, seq, nonce)
    return SyncReply(token, status, epoch, position, nonce, _time_us(seconds, microseconds), tuple(entries))


def _position(epoch: bytes, seq: str, nonce: bytes) -> int:
    if len(epoch) != EPOCH_BYTES or len(nonce) != NONCE_BYTES:
        raise WireError("an epoch or nonce is of another length")
    position = _number(seq)
    if position > MAX_SEQ:
        raise WireError("a version is out of range")
    return position


def _time_us(seconds: str, microseconds: str) -> int:
    return _number(seconds) * 1_000_000 + _number(microseconds)


def _number(text: str | bytes) -> int:
    """Read a number as Lua wrote it: digits alone, where int() would take signs, spaces and underscores as well."""
    if text.isdigit() and text.isascii() and len(text) <= 16:
        return int(text)
    raise WireError("a number is not 1 to 16 digits")


def unpack_fields(data: bytes, types: list[type], what: str) -> list[Any]:
    """Read the format byte and an array whose items are of exactly these types.

    Raises:
        UnknownFormat: the format byte is another.
        WireError: anything else that is no such array.
    """
    if not data:
        raise WireError(f"empty {what}")
    if data[0] != MESSAGE_FORMAT:
        raise UnknownFormat(f"{what} of format {data[0]}, this release knows {MESSAGE_FORMAT}")
    try:
        fields = _unpackb(data[1:])  # a copy costs less than a view
    except Exception as error:  # noqa: BLE001  # msgpack raises many kinds, among them RecursionError-like StackError
        raise WireError(f"a {what} is not msgpack ({type(error).__name__})") from None
    if type(fields) is not list or list(map(type, fields)) != types:
        raise WireError(f"a {what}'s fields are of other types")
    return fields


def _decode_tags(data: bytes, start: int) -> tuple[tuple[str, ...], int]:
    """Return the tags and where they end."""
    try:
        head = data[start]
        if head & 0xF0 == 0x90:
            count, position = head & 0x0F, start + 1
        elif head == 0xDC:
            count, position = int.from_bytes(data[start + 1 : start + 3], "big"), start + 3
            if count < 16:
                raise WireError("damaged tags")
        else:
            raise WireError("damaged tags")
        tags = []
        for _ in range(count):
            if data[position] != _STR8:
                raise WireError("damaged tags")
            end = position + 2 + data[position + 1]
            if end > len(data):
                raise WireError("truncated tags")
            tags.append(data[position + 2 : end].decode("utf-8"))
            position = end
    except IndexError:
        raise WireError("truncated tags") from None
    except UnicodeDecodeError:
        raise WireError("a tag is not UTF-8") from None
    return tuple(tags), position


def _decode_bin_head(data: bytes, start: int) -> tuple[int, int]:
    """Return where the payload starts and how long it says it is."""
    form = _BIN_FORMS.get(data[start]) if start < len(data) else None
    if form is None:
        raise WireError("damaged or missing payload")
    width, least = form
    length = int.from_bytes(data[start + 1 : start + 1 + width], "big")
    if length < least:
        raise WireError("damaged or missing payload")
    return start + 1 + width, length


def _array_head(count: int) -> bytes:
    return bytes((0x90 | count,)) if count < 16 else b"\xdc" + count.to_bytes(2, "big")


def _bin_head(length: int) -> bytes:
    if length < 0x100:
        return bytes((0xC4, length))
    if length < 0x1_0000:
        return b"\xc5" + length.to_bytes(2, "big")
    return b"\xc6" + length.to_bytes(4, "big")
