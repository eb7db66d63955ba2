"""Write ``wire-v1.json``: what release 1 puts into Redis, byte by byte. Refuses to overwrite it.

The file is made once, with the first release. ``tests/unit/test_golden.py`` holds every later release to it, so that
two releases can share a namespace. A wire format that differs gets a number and a file of its own; this one stays.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from coherent_cache.keys import key_digest, shard_names, shard_of
from coherent_cache.serializers import make_codec
from coherent_cache.serializers.compression import make_compressor
from coherent_cache.versions import MAX_SEQ
from coherent_cache.wire import (
    CODE_LEASE,
    CODE_NOTHING,
    TOKEN_BYTES,
    Kind,
    Message,
    SyncReply,
    compressed_prefix,
    encode_content,
    encode_envelope,
    encode_message,
    encode_message_ends,
    encode_receipt,
    encode_sync_reply,
    envelope_prefix,
)

TARGET = Path(__file__).with_name("wire-v1.json")

EPOCH = bytes(range(0xA0, 0xB0))
OTHER_EPOCH = bytes(range(16))
NONCE = bytes(range(0xE0, 0xE8))
PREVIOUS = bytes(range(0xE8, 0xF0))
EXPIRES_MS = 1_800_000_000_123
TIME_US = 1_800_000_000_000_042
LONGEST_IN_FULL = 300  # bytes; longer ones are recorded by length and SHA-256

KEYS = ["a", "user:42", "grün", "ключ", "𝄞", " ", "\0", "{shop/0}", "a" * 1024]

NAMESPACE = {
    "ZoneInfo": ZoneInfo,
    "UTC": UTC,
    "UUID": UUID,
    "Decimal": Decimal,
    "date": date,
    "datetime": datetime,
    "time": time,
    "timedelta": timedelta,
    "timezone": timezone,
}
"""What the expressions of values may name."""

VALUES = [
    "None",
    "True",
    "False",
    *["0", "1", "-1", "127", "128", "-32", "-33", "65536", "2**63 - 1", "-2**63", "2**64 - 1"],
    *["2**64", "-2**63 - 1", "2**100", "-2**100"],
    *["0.0", "-0.0", "1.5", "1e300", "float('inf')", "float('-inf')", "float('nan')"],
    *["''", "'text'", "'grün'", "'𝄞'", "'x' * 32", "'x' * 256"],
    *["b''", "b'bytes'", "b'\\x00\\xff'", "b'\\xc1'", "b'x' * 256"],
    *["[]", "[1, 'two', None]", "[[], [[]]]", "list(range(16))"],
    *["()", "(1, 2)", "((), ((1,),))", "[(1,), [1]]"],
    *["{}", "{'a': 1, 'b': {'c': [2]}}", "{1: 'int', None: 'none', b'b': 'bytes', 1.5: 'float'}", "{(1, 'a'): 2}"],
    *["set()", "{1}", "frozenset()", "frozenset({'a'})", "{'set': {2}}", "{frozenset({1})}"],
    "datetime(2026, 1, 2, 3, 4, 5, 678901)",
    "datetime(1, 1, 1)",
    "datetime(9999, 12, 31, 23, 59, 59, 999999)",
    "datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)",
    "datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=5, minutes=30)))",
    "datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=-3), 'here'))",
    "datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo('Europe/Berlin'))",
    "datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo('Europe/Berlin'), fold=1)",
    *["date(2026, 1, 2)", "date(1, 1, 1)", "date(9999, 12, 31)"],
    *["time(3, 4, 5, 678901)", "time(3, 4, tzinfo=UTC)", "time(3, 4, fold=1)"],
    *["timedelta(0)", "timedelta(days=-1, seconds=2, microseconds=3)", "timedelta.max", "timedelta.min"],
    *["Decimal('1.50')", "Decimal('-0')", "Decimal('1E+10')", "Decimal('Infinity')", "Decimal('NaN')"],
    "UUID('12345678-1234-5678-1234-567812345678')",
]


def recorded(data: bytes) -> dict[str, Any]:
    """Return bytes as the file records them: in full, or by their beginning, length and SHA-256."""
    if len(data) <= LONGEST_IN_FULL:
        return {"hex": data.hex()}
    return {"length": len(data), "sha256": sha256(data).hexdigest(), "begins": data[:100].hex()}


def pattern(length: int) -> bytes:
    """Return a payload of that length; the file records its length only: byte number i is ``i % 251``."""
    return bytes(number % 251 for number in range(length))


def envelope(key: str, **changes: Any) -> dict[str, Any]:
    """Return the record of one envelope."""
    fields: dict[str, Any] = {
        "epoch": EPOCH.hex(), "seq": 42, "expires_ms": EXPIRES_MS, "codec": 1, "tags": [], "payload_length": 10,
    }  # fmt: skip
    fields |= changes
    prefix = envelope_prefix(key_digest(key.encode()), fields["codec"], fields.get("schema", 0))
    prefix = compressed_prefix(prefix, fields.get("compression", 0))
    content = encode_content(tuple(fields["tags"]), pattern(fields["payload_length"]))
    data = encode_envelope(prefix, bytes.fromhex(fields["epoch"]), fields["seq"], fields["expires_ms"], content)
    return {"key": key, **fields, "bytes": recorded(data)}


def envelopes() -> list[dict[str, Any]]:
    """Return records of envelopes: each field at its bounds."""
    sixteen = [f"tag{number}" for number in range(16)]
    return [
        *[envelope(key) for key in KEYS],
        *[envelope("a", tags=tags) for tags in (["red"], ["red", "grün"], sixteen[:15], sixteen, ["t" * 255])],
        *[envelope("a", codec=codec) for codec in (1, 2, 3, 255)],
        *[envelope("a", payload_length=length) for length in (0, 1, 255, 256, 65_535, 65_536)],
        *[envelope("a", payload_length=length, tags=sixteen) for length in (0, 65_536)],
        *[envelope("a", expires_ms=expires_ms) for expires_ms in (0, 1, 10**16 - 1)],
        *[envelope("a", seq=seq) for seq in (1, 10**15, MAX_SEQ)],
        envelope("a", epoch=OTHER_EPOCH.hex()),
        envelope("a", codec=CODE_LEASE, payload_length=TOKEN_BYTES, expires_ms=0),
        envelope("a", codec=CODE_NOTHING, payload_length=0),
    ]


def flagged_envelopes() -> list[dict[str, Any]]:
    """Return records of envelopes whose flags are not all 0. Their payloads are taken as they are."""
    return [
        *[envelope("a", compression=number, schema=0) for number in (1, 2)],
        *[envelope("a", compression=0, schema=number) for number in (1, 258, 65_535)],
        *[envelope("a", compression=number, schema=3, tags=["red"], codec=255) for number in (1, 2)],
    ]


def compressed() -> list[dict[str, Any]]:
    """Return records of compressed payloads, as this release's libraries make them; another's may differ."""
    compressors = (make_compressor("zlib"), make_compressor("zstd"))
    return [
        {"compression": each.code, "length": length, "hex": each.compress(pattern(length)).hex()}
        for each in compressors
        if each is not None
        for length in (0, 1, 2000)
    ]


def str8(text: str) -> bytes:
    """Return a text as the scripts write it: always with one byte of length."""
    return b"\xd9" + bytes((len(text),)) + text.encode()


def bin32(data: bytes) -> bytes:
    """Return bytes as ``sync.lua`` writes them: always with four bytes of length."""
    return b"\xc6" + len(data).to_bytes(4, "big") + data


def message(kind: Kind, names: list[str], **changes: Any) -> dict[str, Any]:
    """Return the record of one message, as Python writes it and as the scripts do."""
    fields: dict[str, Any] = {
        "epoch": EPOCH.hex(),
        "seq": 42,
        "nonce": NONCE.hex(),
        "previous": PREVIOUS.hex(),
        "time_us": TIME_US,
        "origin": "me",
    }
    fields |= changes
    plain = fields | {"epoch": EPOCH, "nonce": NONCE, "previous": PREVIOUS}
    wants_receipts = fields.get("wants_receipts", False)
    head, tail = encode_message_ends(kind, fields["origin"], tuple(names), wants_receipts=wants_receipts)
    seconds, microseconds = divmod(fields["time_us"], 1_000_000)
    middle = b"\xc4\x10" + EPOCH + str8(str(fields["seq"])) + b"\xc4\x08" + NONCE
    middle += b"\xc4\x08" + PREVIOUS
    return {
        "kind": int(kind),
        **fields,
        "names": names,
        "bytes": recorded(encode_message(Message(kind=kind, names=tuple(names), **plain))),
        "bytes_of_scripts": recorded(head + middle + str8(str(seconds)) + str8(str(microseconds)) + tail),
    }


def messages() -> list[dict[str, Any]]:
    """Return records of messages: each kind, bulk writes, unusual keys."""
    return [
        *[message(kind, ["a"]) for kind in (Kind.SET, Kind.DELETE, Kind.TOUCH, Kind.TAG, Kind.RELEASE)],
        message(Kind.CLEAR, []),
        message(Kind.SET, KEYS[:-1]),
        message(Kind.DELETE, [f"key{number}" for number in range(1000)]),
        message(Kind.SET, ["a" * 1024]),
        message(Kind.SET, ["a"], seq=1, time_us=0, origin="host-12-9f"),
        message(Kind.SET, ["a"], seq=MAX_SEQ, origin="x" * 120),
        message(Kind.BATCH, ["a", "grün"]),
        *[message(kind, ["a"], wants_receipts=True) for kind in (Kind.SET, Kind.DELETE, Kind.TAG)],
        message(Kind.CLEAR, [], wants_receipts=True),
    ]


def receipts() -> list[dict[str, Any]]:
    """Return records of receipts."""
    return [
        {"nonce": nonce.hex(), "member": member, "bytes": recorded(encode_receipt(nonce, member))}
        for nonce, member in [(NONCE, "me:0123456789abcdef"), (bytes(8), "x" * 137)]
    ]


def sync_reply(entries: list[bytes], **changes: Any) -> dict[str, Any]:
    """Return the record of one sync reply, as Python writes it and as the script does."""
    fields: dict[str, Any] = {
        "token": b"token-1".hex(), "status": "", "epoch": EPOCH.hex(), "seq": 42, "nonce": NONCE.hex(),
        "time_us": TIME_US,
    }  # fmt: skip
    fields |= changes
    token = bytes.fromhex(fields["token"])
    reply = SyncReply(
        token, fields["status"], EPOCH, fields["seq"], NONCE, fields["time_us"], tuple(entries)
    )  # fmt: skip
    seconds, microseconds = divmod(fields["time_us"], 1_000_000)
    as_script = b"".join(
        (
            b"\x01\x98", bin32(token), str8(fields["status"]), bin32(EPOCH), str8(str(fields["seq"])), bin32(NONCE),
            str8(str(seconds)), str8(str(microseconds)), b"\xdc", len(entries).to_bytes(2, "big"), *map(bin32, entries),
        )
    )  # fmt: skip
    return {
        **fields,
        "entries": [entry.hex() for entry in entries],
        "bytes": recorded(encode_sync_reply(reply)),
        "bytes_of_scripts": recorded(as_script),
    }


def sync_replies() -> list[dict[str, Any]]:
    """Return records of sync replies."""
    entry = encode_message(Message(Kind.SET, EPOCH, 41, NONCE, PREVIOUS, TIME_US, "me", ("a",)))
    return [
        sync_reply([]),
        sync_reply([], seq=0, token=""),
        sync_reply([], seq=MAX_SEQ, status="READONLY"),
        sync_reply([entry, b""]),
    ]


def names(namespace: str, shard: int, database: int) -> dict[str, Any]:
    """Return the record of a shard's names in Redis."""
    made = shard_names(namespace, shard, database)
    return {
        "namespace": namespace,
        "shard": shard,
        "database": database,
        "clock": made.clock.decode(),
        "log": made.log.decode(),
        "probe": made.probe.decode(),
        "members": made.members.decode(),
        "receipts": {origin: made.receipts(origin).decode() for origin in ("me", "host-12-9f")},
        "channel": made.channel.decode(),
        "values": {key: made.value(key.encode()).decode() for key in KEYS[:-1]},
    }


def build() -> dict[str, Any]:
    """Return the whole file."""
    codec = make_codec("msgpack")
    return {
        "envelopes": envelopes(),
        "flagged_envelopes": flagged_envelopes(),
        "compressed": compressed(),
        "messages": messages(),
        "receipts": receipts(),
        "sync_replies": sync_replies(),
        "names": [names("shop", 0, 0), names("shop", 0, 15), names("A-z_0.9", 1023, 3)],
        "shards": [
            {"key": key, "of": {str(n): shard_of(key.encode(), n) for n in (1, 2, 3, 16, 1024)}} for key in KEYS
        ],
        "digests": [{"key": key, "digest": key_digest(key.encode()).hex()} for key in KEYS],
        "values": [{"value": text, "bytes": recorded(codec.encode(eval(text, dict(NAMESPACE))))} for text in VALUES],
    }


def main() -> int:
    """Write the file, unless it is there."""
    if TARGET.exists():
        print(f"{TARGET} exists and is never written again: other releases rely on it", file=sys.stderr)
        return 1
    with TARGET.open("x", encoding="utf-8") as file:
        json.dump(build(), file, indent=1, ensure_ascii=True)
        file.write("\n")
    print(f"wrote {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
