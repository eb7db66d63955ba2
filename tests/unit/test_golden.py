"""What release 1 put into Redis is read, and written again byte by byte: two releases can share a namespace.

A red test here is not repaired by making the file anew: instances of different releases would misread each other.
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from coherent_cache import wire
from coherent_cache.keys import key_digest, shard_names, shard_of
from coherent_cache.serializers import make_codec
from coherent_cache.serializers.compression import COMPRESSION_ZSTD, decompress
from coherent_cache.wire import Kind, Message, SyncReply

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = json.loads((FOLDER / "wire-v1.json").read_text(encoding="utf-8"))
TYPES = {
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


def records(section: str):
    return [pytest.param(record, id=f"{section}-{number}") for number, record in enumerate(GOLDEN[section])]


def assert_recorded(data: bytes, record: dict) -> None:
    if "hex" in record:
        assert data.hex() == record["hex"]
    else:
        assert (len(data), data[:100].hex()) == (record["length"], record["begins"])
        assert sha256(data).hexdigest() == record["sha256"]


def pattern(length: int) -> bytes:
    return bytes(number % 251 for number in range(length))


def test_the_file_has_not_lost_anything():
    counts = {section: len(found) for section, found in GOLDEN.items()}

    assert counts == {
        "envelopes": 35,
        "flagged_envelopes": 7,
        "compressed": 6,
        "messages": 16,
        "receipts": 2,
        "sync_replies": 4,
        "names": 3,
        "shards": 9,
        "digests": 9,
        "values": 78,
    }
    assert {record["kind"] for record in GOLDEN["messages"]} == set(Kind)
    assert {record["codec"] for record in GOLDEN["envelopes"]} == {1, 2, 3, 253, 254, 255}
    assert {record["compression"] for record in GOLDEN["flagged_envelopes"]} == {0, 1, 2}
    assert {record["schema"] for record in GOLDEN["flagged_envelopes"]} == {0, 1, 3, 258, 65_535}
    assert {len(record["tags"]) for record in GOLDEN["envelopes"]} == {0, 1, 2, 15, 16}
    assert {record["payload_length"] for record in GOLDEN["envelopes"]} >= {0, 255, 256, 65_535, 65_536}


@pytest.mark.parametrize("record", records("envelopes"))
def test_envelopes(record):
    epoch, payload = bytes.fromhex(record["epoch"]), pattern(record["payload_length"])
    prefix = wire.envelope_prefix(key_digest(record["key"].encode()), record["codec"])
    content = wire.encode_content(tuple(record["tags"]), payload)

    data = wire.encode_envelope(prefix, epoch, record["seq"], record["expires_ms"], content)
    assert_recorded(data, record["bytes"])

    # `data` is what the file records, so this decodes the recorded bytes, also those recorded by their hash.
    fields = (epoch, record["seq"], record["expires_ms"], record["codec"], tuple(record["tags"]), payload)
    assert wire.decode_envelope(data, prefix) == fields
    other_codec = wire.envelope_prefix(key_digest(record["key"].encode()), record["codec"] ^ 1)
    assert wire.decode_envelope(data, other_codec) == fields


@pytest.mark.parametrize("record", records("flagged_envelopes"))
def test_envelopes_with_flags(record):
    epoch, payload = bytes.fromhex(record["epoch"]), pattern(record["payload_length"])
    prefix = wire.envelope_prefix(key_digest(record["key"].encode()), record["codec"], record["schema"])
    content = wire.encode_content(tuple(record["tags"]), payload)

    start = wire.compressed_prefix(prefix, record["compression"])
    data = wire.encode_envelope(start, epoch, record["seq"], record["expires_ms"], content)
    assert_recorded(data, record["bytes"])

    coding = record["codec"] + 256 * record["compression"]
    fields = (epoch, record["seq"], record["expires_ms"], coding, tuple(record["tags"]), payload)
    assert wire.decode_envelope(data, prefix) == fields


@pytest.mark.parametrize("record", records("compressed"))
def test_compressed_payloads(record):
    if record["compression"] == COMPRESSION_ZSTD:
        pytest.importorskip("backports.zstd" if sys.version_info < (3, 14) else "compression.zstd")
    # What is written may differ from release to release of the libraries, what is read may not.
    assert decompress(bytes.fromhex(record["hex"]), record["compression"], 2000) == pattern(record["length"])


@pytest.mark.parametrize("record", records("messages"))
def test_messages(record):
    message = Message(
        kind=Kind(record["kind"]),
        epoch=bytes.fromhex(record["epoch"]),
        seq=record["seq"],
        nonce=bytes.fromhex(record["nonce"]),
        previous=bytes.fromhex(record["previous"]),
        time_us=record["time_us"],
        origin=record["origin"],
        names=tuple(record["names"]),
        wants_receipts=record.get("wants_receipts", False),
    )

    data = wire.encode_message(message)
    assert_recorded(data, record["bytes"])
    assert wire.decode_message(data) == message


@pytest.mark.parametrize("record", records("messages"))
def test_messages_as_the_scripts_write_them(record):
    # The scripts write the middle, with one byte of length for every number; Python gives them both ends.
    def text(number: int) -> bytes:
        digits = str(number).encode()
        return b"\xd9" + bytes((len(digits),)) + digits

    head, tail = wire.encode_message_ends(
        Kind(record["kind"]),
        record["origin"],
        tuple(record["names"]),
        wants_receipts=record.get("wants_receipts", False),
    )
    seconds, microseconds = divmod(record["time_us"], 1_000_000)
    epoch, nonce, previous = (bytes.fromhex(record[name]) for name in ("epoch", "nonce", "previous"))
    middle = b"\xc4\x10" + epoch + text(record["seq"]) + b"\xc4\x08" + nonce + b"\xc4\x08" + previous
    data = head + middle + text(seconds) + text(microseconds) + tail

    assert_recorded(data, record["bytes_of_scripts"])
    decoded = wire.decode_message(data)
    assert decoded == wire.decode_message(wire.encode_message(decoded))
    assert (decoded.seq, decoded.time_us, list(decoded.names)) == (record["seq"], record["time_us"], record["names"])


@pytest.mark.parametrize("record", records("sync_replies"))
def test_sync_replies(record):
    reply = SyncReply(
        token=bytes.fromhex(record["token"]),
        status=record["status"],
        epoch=bytes.fromhex(record["epoch"]),
        seq=record["seq"],
        nonce=bytes.fromhex(record["nonce"]),
        time_us=record["time_us"],
        entries=tuple(bytes.fromhex(entry) for entry in record["entries"]),
    )

    data = wire.encode_sync_reply(reply)
    assert_recorded(data, record["bytes"])
    assert wire.decode_sync_reply(data) == reply
    assert wire.decode_sync_reply(bytes.fromhex(record["bytes_of_scripts"]["hex"])) == reply


@pytest.mark.parametrize("record", records("receipts"))
def test_receipts(record):
    nonce, member = bytes.fromhex(record["nonce"]), record["member"]

    data = wire.encode_receipt(nonce, member)
    assert_recorded(data, record["bytes"])
    assert wire.decode_receipt(data) == (nonce, member)


@pytest.mark.parametrize("record", records("names"))
def test_names_in_redis(record):
    names = shard_names(record["namespace"], record["shard"], record["database"])

    for name in ("clock", "log", "probe", "members", "channel"):
        assert getattr(names, name).decode() == record[name]
    for origin, channel in record["receipts"].items():
        assert names.receipts(origin) == channel.encode()
    for key, name in record["values"].items():
        assert names.value(key.encode()) == name.encode()


@pytest.mark.parametrize("record", records("shards"))
def test_shards_of_keys(record):
    assert {shards: shard_of(record["key"].encode(), int(shards)) for shards in record["of"]} == record["of"]


@pytest.mark.parametrize("record", records("digests"))
def test_digests_of_keys(record):
    assert key_digest(record["key"].encode()).hex() == record["digest"]


@pytest.mark.parametrize("record", [pytest.param(record, id=record["value"]) for record in GOLDEN["values"]])
def test_values(record):
    codec = make_codec("msgpack")
    value = eval(record["value"], dict(TYPES))

    data = codec.encode(value)
    assert codec.code == 1
    assert_recorded(data, record["bytes"])

    decoded = codec.decode(data, 1)
    assert type(decoded) is type(value)
    assert repr(decoded) == repr(value)  # tells -0.0 from 0.0, takes NaN for NaN, and shows zones and fold


def test_the_maker_never_overwrites_the_file():
    target = FOLDER / "wire-v1.json"
    before = target.read_bytes()

    done = subprocess.run(
        [sys.executable, FOLDER / "make_wire_v1.py"], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 1
    assert "never written again" in done.stderr
    assert target.read_bytes() == before
