"""Values come back exactly or are refused before anything is sent; no stored bytes can do more than fail cleanly."""

# ruff: noqa: DTZ001, DTZ901 - naive datetimes are values like any other
from __future__ import annotations

import array
import enum
import inspect
import io
import json
import pickle
import struct
import sys
import threading
import traceback
import uuid
import warnings
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal, localcontext
from zoneinfo import ZoneInfo

import msgpack
import pytest

from coherent_cache.errors import CoherentCacheError, ConfigError, SerializationError
from coherent_cache.serializers import (
    CODE_CUSTOM,
    CODE_JSON,
    CODE_MSGPACK,
    CODE_PICKLE,
    MAX_NESTING,
    Codec,
    immutable,
    is_immutable,
    make_codec,
    msgpack_codec,
)

MSGPACK = make_codec("msgpack")
JSON = make_codec("json")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    PICKLE = make_codec("pickle")

SECRET = "hunter2-the-password"


@dataclass
class Plain:
    x: int = 1


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


class Name(str):
    __slots__ = ()


class Number(int):
    pass


class Zone(tzinfo):
    def utcoffset(self, moment):
        return timedelta(hours=1)

    def dst(self, moment):
        return timedelta(0)

    def tzname(self, moment):
        return "Z"


class Moment(datetime):
    pass


Point = namedtuple("Point", "x y")  # noqa: PYI024 - an untyped one is a subclass of tuple just the same


class Rot13:
    def dumps(self, value):
        return b"R" + repr(value).encode()

    def loads(self, data):
        if data[:1] != b"R":
            raise ValueError(data)
        return data[1:].decode()


def same(left, right):
    """Equality that also looks at the types, at NaN, at the zone of a datetime and at the sign of zero."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return repr(left) == repr(right)
    if isinstance(left, Decimal):
        return left.as_tuple() == right.as_tuple()
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, (set, frozenset)):
        return same(sorted(left, key=repr), sorted(right, key=repr))
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    if isinstance(left, (datetime, time)):
        return repr(left) == repr(right) and left == right and left.fold == right.fold
    return left == right


def nested(depth, kind=list):
    value = 1
    for _ in range(depth):
        value = {"k": value} if kind is dict else kind((value,))
    return value


def stored(value):
    return MSGPACK.decode(MSGPACK.encode(value), CODE_MSGPACK)


def ext(code, payload):
    return msgpack.packb(msgpack.ExtType(code, payload))


# --- msgpack: exact ---------------------------------------------------------------------------------------------------

EXACT = [
    None,
    True,
    False,
    0,
    -1,
    2**63 - 1,
    2**63,
    2**64 - 1,
    2**64,
    -(2**63),
    -(2**63) - 1,
    2**127,
    -(2**127),
    -(2**127) - 1,
    3**5000,
    0.0,
    -0.0,
    1.1,
    5e-324,
    float("inf"),
    float("-inf"),
    float("nan"),
    "",
    "ä€😀\x00",
    "x" * 70_000,
    b"",
    b"\xc1\x00",
    b"x" * 70_000,
    [],
    (),
    {},
    set(),
    frozenset(),
    [1, [2, (3, [4])]],
    ([], ()),
    ((),),
    [()],
    {1, "1", (1,), frozenset({1})},
    frozenset({frozenset({frozenset()})}),
    {"a": (1, 2), "b": {3}, "c": frozenset({4})},
    {1: 1, "1": 2, b"1": 3, (1,): 4, None: 5, 1.5: 6, frozenset({1}): 7, 2**70: 8},
    {(1, (2, frozenset({3}))): {(): set()}},
    {date(2024, 1, 1): 1, Decimal("1.0"): 2, uuid.UUID(int=1): 3, timedelta(1): 4},
    {True: "a", 2: "b"},
    {"b": 1, "a": 2},
    datetime(1, 1, 1),
    datetime.max,
    datetime(2024, 2, 29, 23, 59, 59, 999999),
    datetime(2024, 2, 29, tzinfo=UTC),
    datetime(2024, 2, 29, tzinfo=timezone(timedelta(hours=5, minutes=30))),
    datetime(2024, 2, 29, tzinfo=timezone(timedelta(hours=-5, microseconds=1))),
    datetime(2024, 2, 29, tzinfo=timezone(timedelta(hours=1), "CËT")),
    datetime(2024, 2, 29, tzinfo=timezone(timedelta(0), "Zulu")),
    datetime(2024, 7, 1, tzinfo=ZoneInfo("Europe/Berlin")),
    datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
    datetime(2024, 10, 27, 2, 30, fold=1),
    date.min,
    date.max,
    time.min,
    time(23, 59, 59, 999999, fold=1),
    time(1, tzinfo=UTC),
    time(1, tzinfo=ZoneInfo("America/New_York")),
    timedelta.min,
    timedelta.max,
    timedelta(days=-1, microseconds=1),
    Decimal(0),
    Decimal("-0.00"),
    Decimal("1E+999999"),
    Decimal("1.2345678901234567890123456789012345678901234567890e-77"),
    Decimal("Infinity"),
    Decimal("-Infinity"),
    Decimal("NaN"),
    Decimal("-NaN123"),
    Decimal("sNaN"),
    uuid.UUID("12345678-1234-5678-1234-567812345678"),
]


@pytest.mark.parametrize("value", EXACT, ids=lambda value: repr(value)[:40])
def test_msgpack_gives_back_the_same_value_of_the_same_type(value):
    assert same(stored(value), value)
    assert same(stored([value]), [value])
    assert same(stored({"k": (value,)}), {"k": (value,)})


def test_the_type_of_a_key_is_kept():
    (key,) = stored({(1, 2): "x"})
    assert type(key) is tuple


def test_named_and_unnamed_zones_keep_their_names():
    named = stored(datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=1), "CET")))
    plain = stored(datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=1))))
    assert (named.tzname(), plain.tzname()) == ("CET", "UTC+01:00")
    assert stored(datetime(2024, 1, 1, tzinfo=UTC)).tzinfo is UTC
    zone = stored(datetime(2024, 1, 1, tzinfo=ZoneInfo("Asia/Tokyo"))).tzinfo
    assert type(zone) is ZoneInfo
    assert zone.key == "Asia/Tokyo"


def test_a_decimal_does_not_depend_on_the_context_of_writer_or_reader():
    value = Decimal("1.234567E+50")
    data = MSGPACK.encode(value)
    with localcontext(prec=2, capitals=0):
        assert MSGPACK.encode(value) == data
        assert same(stored(value), value)
    with localcontext(traps=[]), pytest.raises(SerializationError):
        MSGPACK.decode(ext(msgpack_codec.EXT_DECIMAL, b"abc"), CODE_MSGPACK)


def test_the_order_of_a_dict_is_kept():
    assert list(stored({"b": 1, "a": (), "c": 3})) == ["b", "a", "c"]


def test_two_threads_may_use_one_codec():
    values = [{"n": n, "t": (n, {n}), "d": datetime(2000, 1, 1) + timedelta(n)} for n in range(20)]
    wrong = []

    def work(value):
        wrong.extend(value for _ in range(300) if not same(stored(value), value))

    threads = [threading.Thread(target=work, args=(value,)) for value in values]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- the wire format: two releases share it, so these bytes never change ----------------------------------------------

FROZEN_WIRE = [
    ({"a": [1, None]}, "81a1619201c0"),
    ((1,), "c192c7000101"),
    ({1}, "c192c7000201"),
    (frozenset({1}), "c192c7000301"),
    ([[], ()], "c1929091c70001"),
    (2**64, "c70904010000000000000000"),
    (-(2**63) - 1, "c70904ff7fffffffffffffff"),
    (datetime(2024, 2, 29, 1, 2, 3, 4), "c70c0507e8021d0102030000000400"),
    (datetime(2024, 2, 29, tzinfo=UTC, fold=1), "c7140507e8021d0000000000000003" + "00" * 8),
    (datetime(2024, 2, 29, tzinfo=timezone(timedelta(0), "Z")), "c7150507e8021d0000000000000004" + "00" * 8 + "5a"),
    (datetime(2024, 2, 29, tzinfo=ZoneInfo("UTC")), "c70f0507e8021d0000000000000006555443"),
    (date(2024, 2, 29), "d60607e8021d"),
    (time(1, 2, 3, 4), "d7070102030000000400"),
    (timedelta(-1, 2, 3), "c70c08ffffffff0000000200000003"),
    (Decimal("-1.50"), "c705092d312e3530"),
    (Decimal("1E+2"), "d60931452b32"),
    (uuid.UUID(int=1), "d80a" + "00" * 15 + "01"),
]


@pytest.mark.parametrize(("value", "wire"), FROZEN_WIRE, ids=lambda value: repr(value)[:40])
def test_the_wire_format_is_frozen(value, wire):
    assert MSGPACK.encode(value).hex() == wire
    assert same(MSGPACK.decode(bytes.fromhex(wire), CODE_MSGPACK), value)


def test_the_numbers_are_frozen():
    assert (CODE_MSGPACK, CODE_JSON, CODE_PICKLE, CODE_CUSTOM) == (1, 2, 3, 255)
    assert [(codec.code, codec.name) for codec in (MSGPACK, JSON, PICKLE)] == [
        (1, "msgpack"),
        (2, "json"),
        (3, "pickle"),
    ]
    names = ["TUPLE", "SET", "FROZENSET", "BIG_INT", "DATETIME", "DATE", "TIME", "TIMEDELTA", "DECIMAL", "UUID"]
    assert [getattr(msgpack_codec, f"EXT_{name}") for name in names] == list(range(1, 11))


def test_the_table_in_the_docstring_names_every_extension():
    rows = [line.split() for line in msgpack_codec.__doc__.splitlines()]
    table = {row[0]: row[1] for row in rows if row and row[0].isdigit()}
    assert [table[str(code)] for code in range(4, 11)] == [
        kind.__name__ for kind in (int, datetime, date, time, timedelta, Decimal, uuid.UUID)
    ]


# --- msgpack: refused -------------------------------------------------------------------------------------------------

REFUSED = [
    (Plain(), "Plain"),
    (Colour.RED, "Colour"),
    (Level.LOW, "Level"),
    (Name("x"), "Name"),
    (Number(1), "Number"),
    (Point(1, 2), "Point"),
    (Moment(2024, 1, 1), "Moment"),
    (OrderedDict(a=1), "OrderedDict"),
    (defaultdict(int), "defaultdict"),
    (Counter("a"), "Counter"),
    (deque([1]), "deque"),
    (bytearray(b"x"), "bytearray"),
    (memoryview(b"x"), "memoryview"),
    (array.array("i", [1]), "array"),
    (1j, "complex"),
    (range(3), "range"),
    (object(), "object"),
    (len, "builtin_function_or_method"),
    (int, "type"),
    (..., "ellipsis"),
    (msgpack.ExtType(1, b""), "ExtType"),
    (msgpack.ExtType(99, b""), "ExtType"),
    (msgpack.Timestamp(1), "Timestamp"),
    ({}.keys(), "dict_keys"),
    (iter([]), "list_iterator"),
]


@pytest.mark.parametrize(("value", "name"), REFUSED, ids=[name for _, name in REFUSED])
@pytest.mark.parametrize(
    ("wrap", "path"),
    [
        (lambda value: value, "$"),
        (lambda value: {"items": [1, (), {"a": 1}, value]}, "$.items[3]"),
        (lambda value: ((1, value),), "$[0][1]"),
        (lambda value: {"two words": value}, "$[<str>]"),
        (lambda value: {7: value}, "$[<int>]"),
    ],
)
def test_msgpack_refuses_what_it_would_not_give_back(value, name, wrap, path):
    with pytest.raises(SerializationError) as caught:
        MSGPACK.encode(wrap(value))
    assert caught.value.reason.startswith(f"{path}: type ")
    assert f"{name} is not stored exactly" in caught.value.reason


@pytest.mark.parametrize("value", [Level.LOW, Name("x"), Point(1, 2)])
def test_refused_as_key_or_item_too(value):
    with pytest.raises(SerializationError, match=r"\$<key>: type"):
        MSGPACK.encode({value: 1})
    with pytest.raises(SerializationError, match=r"\$<item>: type"):
        MSGPACK.encode({value})
    with pytest.raises(SerializationError, match=r"\$<key>\[1\]<item>: type"):
        MSGPACK.encode({(1, frozenset({value})): 1})


@pytest.mark.parametrize("codec", [MSGPACK, JSON], ids=["msgpack", "json"])
@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "\ud83d\ude00"])
def test_lone_surrogates_are_refused(codec, text):
    with pytest.raises(SerializationError, match=r"^\$: str with lone surrogates"):
        codec.encode(text)
    with pytest.raises(SerializationError, match=r"^\$\.a\[1\]: str with lone surrogates"):
        codec.encode({"a": ["ok", text]})
    with pytest.raises(SerializationError, match=r"^\$<key>: str with lone surrogates"):
        codec.encode({text: 1})


# The smallest file of a time zone: version 1, one type, UTC.
ZONE_FILE = b"TZif" + b"\0" * 16 + struct.pack(">6l", 0, 0, 0, 0, 1, 4) + struct.pack(">lbb", 0, 0, 0) + b"UTC\0"


def keyless_zone():
    return ZoneInfo.from_file(io.BytesIO(ZONE_FILE))


@pytest.mark.parametrize("zone", [Zone(), keyless_zone()], ids=["own", "keyless"])
def test_a_zone_without_a_key_is_refused(zone):
    with pytest.raises(SerializationError, match=r"^\$\.at: a time zone of type .*Zone.* has no key"):
        MSGPACK.encode({"at": datetime(2024, 1, 1, tzinfo=zone)})
    with pytest.raises(SerializationError, match=r"^\$\[0\]: a time zone of type .*Zone.* has no key"):
        MSGPACK.encode([time(1, tzinfo=zone)])


def test_a_zone_with_a_key_that_no_reader_will_find_is_refused():
    with io.BytesIO(ZONE_FILE) as file:
        zone = ZoneInfo.from_file(file, key="Mars/Olympus")
    with pytest.raises(SerializationError, match=r"^\$: a time zone that is not installed here"):
        MSGPACK.encode(datetime(2024, 1, 1, tzinfo=zone))


def recursive():
    items = [1]
    items.append(items)
    mapping = {"a": {}}
    mapping["a"]["b"] = (mapping,)
    pair = []
    pair.extend([pair, pair])
    return [(items, "list", "$[1]"), (mapping, "dict", "$.a.b[0]"), (pair, "list", "$[0]")]


@pytest.mark.parametrize(("value", "name", "path"), recursive(), ids=["list", "dict", "twice"])
def test_msgpack_refuses_structures_that_contain_themselves(value, name, path):
    with pytest.raises(SerializationError) as caught:
        MSGPACK.encode(value)
    assert caught.value.reason == f"{path}: the {name} contains itself"


def test_json_refuses_structures_that_contain_themselves():
    items = []
    items.append({"a": items})
    with pytest.raises(SerializationError, match=r"^\$\[0\]\.a: the list contains itself"):
        JSON.encode(items)


def test_the_same_object_twice_is_no_recursion():
    part = [1]
    assert stored([part, part, (part, part)]) == [[1], [1], ([1], [1])]


@pytest.mark.parametrize("kind", [list, tuple, frozenset, dict])
def test_the_nesting_limit_of_msgpack(kind):
    assert same(stored(nested(MAX_NESTING, kind)), nested(MAX_NESTING, kind))
    with pytest.raises(SerializationError, match=f"more than {MAX_NESTING} containers inside one another"):
        MSGPACK.encode(nested(MAX_NESTING + 1, kind))


@pytest.mark.parametrize("kind", [list, dict])
def test_the_nesting_limit_of_json(kind):
    assert JSON.decode(JSON.encode(nested(MAX_NESTING, kind)), CODE_JSON) == nested(MAX_NESTING, kind)
    with pytest.raises(SerializationError, match=f"more than {MAX_NESTING} containers inside one another"):
        JSON.encode(nested(MAX_NESTING + 1, kind))


def test_nesting_far_beyond_any_limit_is_a_clean_error():
    for codec in (MSGPACK, JSON, PICKLE):
        with pytest.raises(SerializationError):
            codec.encode(nested(100_000))


@pytest.mark.parametrize(
    ("codec", "value"),
    [
        (MSGPACK, {"a": [SECRET, bytearray(SECRET.encode())]}),
        (MSGPACK, {SECRET: object(), SECRET * 2: bytearray(b"")}),
        (MSGPACK, [SECRET + "\ud800"]),
        (MSGPACK, {SECRET + "!": {SECRET, Name(SECRET + "2")}}),
        (JSON, {"a": [SECRET, (SECRET,)]}),
        (JSON, [SECRET + "\ud800"]),
        (JSON, {Name(SECRET): SECRET}),
    ],
)
def test_no_error_of_a_strict_codec_shows_the_value(codec, value):
    with pytest.raises(SerializationError) as caught:
        codec.encode(value)
    assert caught.value.__context__ is caught.value.__cause__ is None, "the packer's exception holds the value"
    shown = "".join(traceback.format_exception(caught.value))
    assert SECRET not in shown


def test_a_change_by_another_thread_is_a_clean_error(monkeypatch):
    def changed(*_args, **_kwargs):
        raise RuntimeError("dictionary changed size during iteration")

    monkeypatch.setattr(msgpack_codec.msgpack, "Packer", changed)
    with pytest.raises(SerializationError, match=r"type dict .*\(RuntimeError\)"):
        MSGPACK.encode({})


def test_what_changes_between_check_and_packing_is_refused_all_the_same(monkeypatch):
    monkeypatch.setattr(msgpack_codec, "_has_marks", lambda *_: False)
    with pytest.raises(SerializationError, match=r"^\$\[0\]: type object is not stored exactly"):
        MSGPACK.encode([object()])


@pytest.mark.parametrize("codec", [MSGPACK, JSON], ids=["msgpack", "json"])
def test_a_nearly_exhausted_stack_is_a_clean_error(codec):
    value = nested(100)

    def descend(frames):
        return descend(frames - 1) if frames else codec.encode(value)

    here = len(inspect.stack(0))
    with pytest.raises(SerializationError, match=r"cannot be encoded by serializer .* \(RecursionError\)"):
        descend(sys.getrecursionlimit() - here - 60)


# --- msgpack: damaged bytes -------------------------------------------------------------------------------------------

DAMAGED = {
    "empty": b"",
    "mark alone": b"\xc1",
    "never used": b"\xc1\xc1",
    "two values": b"\x01\x02",
    "truncated": MSGPACK.encode([1, 2, 3])[:-1],
    "truncated tuple": MSGPACK.encode((1, 2, 3))[:-1],
    "bad utf-8": b"\xa1\xff",
    "bin of 4 GiB": b"\xc6\xff\xff\xff\xff",
    "str of 4 GiB": b"\xdb\xff\xff\xff\xff",
    "array of 4 Gi": b"\xdd\xff\xff\xff\xff",
    "map of 4 Gi": b"\xdf\xff\xff\xff\xff",
    "ext of 4 GiB": b"\xc9\xff\xff\xff\xff\x05",
    "array of 4 Gi in marks": b"\xc1\xdd\xff\xff\xff\xff",
    "deep arrays": b"\x91" * 100_000,
    "deep maps": b"\x81" * 100_000,
    "deep tuples": b"\xc1" + b"\x92\xc7\x00\x01" * 100_000,
    "deep sizes": b"\xc1" + b"\xdd\x00\x00\xff\xff" * 20_000,
    "list as key": b"\x81\x90\x01",
    "dict as key": b"\x81\x80\x01",
    "list in a set": b"\xc1\x92\xc7\x00\x02\x90",
    "unhashable Decimal in a set": b"\xc1\x92\xc7\x00\x02" + ext(msgpack_codec.EXT_DECIMAL, b"sNaN"),
    "mark outside of marked bytes": b"\x91\xc7\x00\x01",
    "mark without a list": b"\xc1\xc7\x00\x01",
    "mark not at the front": b"\xc1\x92\x01\xc7\x00\x01",
    "two marks": b"\xc1\x92\xc7\x00\x01\xc7\x00\x01",
    "mark as key": b"\xc1\x81\xc7\x00\x01\x01",
    "mark with a payload": b"\xc1\x92\xd4\x01\x00\x01",
    "unknown extension": ext(99, b""),
    "unknown extension in marks": b"\xc1" + ext(99, b""),
    "negative extension": b"\xd4\xfe\x00",
    "bad timestamp": b"\xd4\xff\x00",
    "timestamp of the year 292e9": b"\xc7\x0c\xff" + b"\x00\x00\x00\x00" + b"\x7f" * 8,
    "datetime too short": ext(msgpack_codec.EXT_DATETIME, b"\x00"),
    "datetime month 0": ext(msgpack_codec.EXT_DATETIME, b"\x07\xe8" + b"\x00" * 11),
    "naive datetime with a zone": ext(msgpack_codec.EXT_DATETIME, bytes.fromhex("07e8021d01020300000004 00 61")),
    "datetime zone 4": ext(msgpack_codec.EXT_DATETIME, bytes.fromhex("07e8021d01020300000004 08")),
    "datetime offset too short": ext(msgpack_codec.EXT_DATETIME, bytes.fromhex("07e8021d01020300000004 02 00")),
    "datetime offset of a week": ext(
        msgpack_codec.EXT_DATETIME, bytes.fromhex("07e8021d01020300000004 02") + (7 * 86400 * 10**6).to_bytes(8, "big")
    ),
    "datetime offset huge": ext(msgpack_codec.EXT_DATETIME, bytes.fromhex("07e8021d01020300000004 02") + b"\x7f" * 8),
    "zone escaping": ext(msgpack_codec.EXT_DATETIME, bytes.fromhex("07e8021d01020300000004 06") + b"../../etc/passwd"),
    "zone absolute": ext(msgpack_codec.EXT_DATETIME, bytes.fromhex("07e8021d01020300000004 06") + b"/etc/passwd"),
    "zone with NUL": ext(msgpack_codec.EXT_DATETIME, bytes.fromhex("07e8021d01020300000004 06") + b"a\x00b"),
    "zone empty": ext(msgpack_codec.EXT_DATETIME, bytes.fromhex("07e8021d01020300000004 06")),
    "zone a folder": ext(msgpack_codec.EXT_DATETIME, bytes.fromhex("07e8021d01020300000004 06") + b"America"),
    "zone bad utf-8": ext(msgpack_codec.EXT_DATETIME, bytes.fromhex("07e8021d01020300000004 06") + b"\xff"),
    "date too long": ext(msgpack_codec.EXT_DATE, b"\x07\xe8\x02\x1d\x00"),
    "date month 13": ext(msgpack_codec.EXT_DATE, b"\x07\xe8\x0d\x01"),
    "time hour 99": ext(msgpack_codec.EXT_TIME, b"\x63" + b"\x00" * 7),
    "timedelta too large": ext(msgpack_codec.EXT_TIMEDELTA, b"\x7f" * 12),
    "decimal empty": ext(msgpack_codec.EXT_DECIMAL, b""),
    "decimal words": ext(msgpack_codec.EXT_DECIMAL, b"abc"),
    "decimal not canonical": ext(msgpack_codec.EXT_DECIMAL, b" 1_0"),
    "decimal not ascii": ext(msgpack_codec.EXT_DECIMAL, "\u0661".encode()),
    "uuid too short": ext(msgpack_codec.EXT_UUID, b"\x00" * 15),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_msgpack_is_a_clean_error(data):
    with pytest.raises(SerializationError, match="not what serializer 'msgpack' writes") as caught:
        MSGPACK.decode(data, CODE_MSGPACK)
    assert caught.value.__context__ is caught.value.__cause__ is None


def test_a_missing_zone_is_named_as_the_reason():
    data = ext(msgpack_codec.EXT_DATETIME, bytes.fromhex("07e8021d01020300000004 06") + b"Mars/Olympus")
    with pytest.raises(SerializationError, match="install the tzdata package"):
        MSGPACK.decode(data, CODE_MSGPACK)


def test_declared_lengths_cost_no_memory():
    tracemalloc = pytest.importorskip("tracemalloc")
    bomb = b"".join(b"\xdd" + (1 << 17).to_bytes(4, "big") for _ in range(200)) + b"\xc0" * (1 << 17)
    tracemalloc.start()
    try:
        with pytest.raises(SerializationError):
            MSGPACK.decode(b"\xdd\x7f\xff\xff\xff" + b"\xc0" * 1000, CODE_MSGPACK)
        small = tracemalloc.get_traced_memory()[1]
        with pytest.raises(SerializationError):
            MSGPACK.decode(bomb, CODE_MSGPACK)
    finally:
        tracemalloc.stop()
    assert small < 1_000_000


def test_a_timestamp_of_another_writer_is_a_datetime():
    data = msgpack.packb([msgpack.Timestamp(0)])
    assert MSGPACK.decode(data, CODE_MSGPACK) == [datetime(1970, 1, 1, tzinfo=UTC)]


# --- json -------------------------------------------------------------------------------------------------------------

JSON_EXACT = [
    None,
    True,
    0,
    -1,
    10**300,
    0.0,
    -0.0,
    1.1,
    1e300,
    5e-324,
    "",
    'ä€😀\x00\u2028"\\',
    [],
    {},
    {"": [None, {"a": [1.5, "x"]}]},
    {"b": 1, "a": 2},
]


@pytest.mark.parametrize("value", JSON_EXACT, ids=lambda value: repr(value)[:40])
def test_json_gives_back_the_same_value_of_the_same_type(value):
    data = JSON.encode(value)
    assert same(JSON.decode(data, CODE_JSON), value)
    assert json.loads(data) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ((1,), r"^\$: type tuple is not stored exactly"),
        ({"a": [(1,)]}, r"^\$\.a\[0\]: type tuple"),
        ([b"x"], r"^\$\[0\]: type bytes"),
        ({1: 1}, r"^\$: the dict has a key of type int; json takes str keys only"),
        ({"a": {None: 1}}, r"^\$\.a: the dict has a key of type NoneType"),
        ({"a": {True: 1}}, r"^\$\.a: the dict has a key of type bool"),
        ({Name("x"): 1}, r"^\$: the dict has a key of type .*Name"),
        (float("nan"), r"^\$: a float that is NaN or infinite"),
        ([1, float("inf")], r"^\$\[1\]: a float that is NaN or infinite"),
        ({"a": float("-inf")}, r"^\$\.a: a float that is NaN or infinite"),
        (Level.LOW, r"^\$: type .*Level"),
        (OrderedDict(), r"^\$: type .*OrderedDict"),
        (Point(1, 2), r"^\$: type .*Point"),
        ({1, 2}, r"^\$: type set"),
        (datetime(2024, 1, 1), r"^\$: type datetime.datetime"),
        (Decimal(1), r"^\$: type decimal.Decimal"),
        ([10**5000], r"^\$\[0\]: int that cannot be encoded \(ValueError\)"),
    ],
)
def test_json_refuses_what_it_would_not_give_back(value, text):
    with pytest.raises(SerializationError, match=text) as caught:
        JSON.encode(value)
    assert caught.value.__context__ is caught.value.__cause__ is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"{",
        b"1 2",
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b'"\xff"',
        b"\xef\xbb\xbf1",
        '"x"'.encode("utf-16"),
        b"{1: 2}",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"9" * 100_000,
    ],
    ids=lambda data: repr(data)[:20],
)
def test_damaged_json_is_a_clean_error(data):
    with pytest.raises(SerializationError, match="not what serializer 'json' writes") as caught:
        JSON.decode(data, CODE_JSON)
    assert caught.value.__context__ is caught.value.__cause__ is None


# --- mixed fleets -----------------------------------------------------------------------------------------------------


def custom(spec=None):
    return make_codec(spec or Rot13())


class Bomb:
    exploded = False

    def __reduce__(self):
        return explode, ()


def explode():
    Bomb.exploded = True


@pytest.mark.parametrize("reader", [MSGPACK, JSON, PICKLE, custom()], ids=lambda codec: codec.name)
def test_the_safe_codecs_are_read_by_every_instance(reader):
    value = {"a": [1, "x", None, 1.5]}
    assert reader.decode(MSGPACK.encode(value), CODE_MSGPACK) == value
    assert reader.decode(JSON.encode(value), CODE_JSON) == value


@pytest.mark.parametrize("reader", [MSGPACK, JSON, custom()], ids=lambda codec: codec.name)
def test_pickled_bytes_are_never_unpickled_unless_asked_for(reader):
    data = pickle.dumps(Bomb())
    Bomb.exploded = False
    with pytest.raises(SerializationError, match="stored with serializer 'pickle', but this instance has ") as caught:
        reader.decode(data, CODE_PICKLE)
    assert not Bomb.exploded
    assert repr(reader.name) in str(caught.value)
    assert "configure the same serializer on every instance" in str(caught.value)
    PICKLE.decode(data, CODE_PICKLE)
    assert Bomb.exploded


@pytest.mark.parametrize("reader", [MSGPACK, JSON, PICKLE], ids=lambda codec: codec.name)
def test_bytes_of_a_custom_serializer_are_read_by_a_custom_one_only(reader):
    data = custom().encode(1)
    with pytest.raises(
        SerializationError, match=f"stored with a custom serializer, but this instance has .{reader.name}"
    ):
        reader.decode(data, CODE_CUSTOM)


@pytest.mark.parametrize("code", [-1, 0, 4, 17, 254, 256])
def test_an_unknown_number_is_refused_with_a_remedy(code):
    with pytest.raises(SerializationError, match=f"serializer number {code}, which this release does not know"):
        MSGPACK.decode(b"\x01", code)


# --- pickle and custom ------------------------------------------------------------------------------------------------


def test_pickle_warns_once_per_construction_at_the_callers_line():
    for _ in range(2):
        with pytest.warns(UserWarning, match="can execute code") as caught:
            make_codec("pickle")
        assert len(caught) == 1
        assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="can execute code"):
        assert make_codec(pickle).code == CODE_PICKLE


def test_the_others_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for spec in ("msgpack", "json", Rot13()):
            make_codec(spec)


def test_pickle_takes_and_gives_back_objects():
    value = {"a": [Plain(3), Point(1, 2), Level.LOW]}
    assert PICKLE.decode(PICKLE.encode(value), CODE_PICKLE) == value
    assert PICKLE.encode(1)[1] == 5, "a constant protocol, for fleets of several Pythons"


def test_pickle_errors_are_ours():
    with pytest.raises(SerializationError, match=r"type function cannot be pickled") as caught:
        PICKLE.encode(lambda: 1)
    assert caught.value.__cause__ is not None
    data = PICKLE.encode({"a": [1, 2, Plain()]})
    for size in range(len(data)):
        with pytest.raises(SerializationError, match="cannot be unpickled"):
            PICKLE.decode(data[:size], CODE_PICKLE)


def test_a_custom_serializer_is_used():
    codec = custom()
    assert codec.code == CODE_CUSTOM
    assert codec.name.endswith("Rot13")
    assert codec.decode(codec.encode(12), CODE_CUSTOM) == "12"


def test_a_module_may_be_a_custom_serializer():
    class Text:
        dumps = staticmethod(json.dumps)
        loads = staticmethod(json.loads)

    assert make_codec(json).name == "json"
    assert make_codec(json).code == CODE_CUSTOM
    with pytest.raises(SerializationError, match=r"dumps of serializer .* returned str instead of bytes"):
        make_codec(Text()).encode(1)


def test_errors_of_a_custom_serializer_are_ours_and_keep_the_cause():
    class Broken:
        def dumps(self, value):
            raise KeyError(value)

        def loads(self, data):
            raise ZeroDivisionError

    codec = make_codec(Broken())
    with pytest.raises(SerializationError, match=r"Broken' cannot encode the value of type str \(KeyError\)") as caught:
        codec.encode(SECRET)
    assert SECRET not in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(SerializationError, match=r"Broken' cannot decode it \(ZeroDivisionError\)"):
        codec.decode(b"x", CODE_CUSTOM)


class EqualToAll:
    def __eq__(self, other):
        raise RuntimeError

    __hash__ = None


@pytest.mark.parametrize("spec", [None, "yaml", "", 1, b"msgpack", object(), EqualToAll(), {"dumps": 1}], ids=repr)
def test_a_wrong_spec_is_a_config_error(spec):
    with pytest.raises(ConfigError, match=r"^serializer: must be 'msgpack', 'json', 'pickle' or an object") as caught:
        make_codec(spec)
    assert caught.value.option == "serializer"


def test_half_a_serializer_is_a_config_error():
    class Half:
        def dumps(self, value):
            return b""

    with pytest.raises(ConfigError):
        make_codec(Half())


def test_a_codec_is_frozen_and_stays_itself():
    assert make_codec(MSGPACK) is MSGPACK
    assert isinstance(MSGPACK, Codec)
    with pytest.raises(AttributeError):
        MSGPACK.code = 2
    assert not hasattr(MSGPACK, "__dict__")


def test_errors_are_of_the_package():
    with pytest.raises(CoherentCacheError):
        MSGPACK.encode(object())


# --- is_immutable -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        1,
        1.5,
        "x",
        b"x",
        datetime(2024, 1, 1),
        date(2024, 1, 1),
        time(1),
        timedelta(1),
        Decimal(1),
        uuid.UUID(int=1),
        (),
        frozenset(),
        (1, "x", (None, frozenset({(1,)}))),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_immutable(value):
    assert is_immutable(value)
    assert is_immutable((value, frozenset({value})))


def test_immutable_at_any_depth():
    assert is_immutable(nested(5_000, tuple))


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        set(),
        ([],),
        ((1, ({},)),),
        bytearray(),
        Name("x"),
        Number(1),
        Point(1, 2),
        (Point(1, 2),),
        Moment(2024, 1, 1),
        Plain(),
        object(),
        Colour.RED,
        frozenset({Name("x")}),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_not_immutable(value):
    assert not is_immutable(value)


def test_immutable_gives_up_on_huge_values():
    value = ()
    for _ in range(200):
        value = (value, value)  # 2**200 paths
    assert not is_immutable(value)
    assert is_immutable((1,) * immutable.IMMUTABLE_ITEMS)
    assert not is_immutable((1,) * (immutable.IMMUTABLE_ITEMS + 1))
