"""The codec ``msgpack``: exact for the types that the package's docstring lists.

Two releases share it, so a number below never changes its meaning. All numbers are
big-endian.

====  ===========  ==========================================================================================
ext   type         payload
====  ===========  ==========================================================================================
1     tuple        empty; the first element of an array, whose other elements are the items
2     set          as 1
3     frozenset    as 1
4     int          two's complement, of an int outside -2**63 .. 2**64 - 1
5     datetime     year u16, month, day, hour, minute, second u8 each, microsecond u32, flags u8, zone
6     date         year u16, month u8, day u8
7     time         hour, minute, second u8 each, microsecond u32, flags u8, zone
8     timedelta    days i32, seconds u32, microseconds u32
9     Decimal      ``str()`` of it in ASCII, exponent with an upper case E
10    UUID         its 16 bytes
====  ===========  ==========================================================================================

Flags: bit 0 is ``fold``; bits 1 and 2 say what the zone is: 0 nothing (naive), 1 the UTC offset in microseconds (i64),
2 the same followed by the zone's name in UTF-8, 3 the key of a :class:`zoneinfo.ZoneInfo` in UTF-8.

Extensions 1 to 3 occur only in bytes that begin with ``0xC1``, a byte that msgpack itself never uses. The commonest
values have no such container, and reading them needs no call into Python per array.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack

from coherent_cache.serializers.exact import MAX_NESTING, Format, Refused, damaged, explain, type_name
from coherent_cache.serializers.immutable import IMMUTABLE_SCALARS

if TYPE_CHECKING:
    from collections.abc import Callable

EXT_TUPLE: Final = 1
EXT_SET: Final = 2
EXT_FROZENSET: Final = 3
EXT_BIG_INT: Final = 4
EXT_DATETIME: Final = 5
EXT_DATE: Final = 6
EXT_TIME: Final = 7
EXT_TIMEDELTA: Final = 8
EXT_DECIMAL: Final = 9
EXT_UUID: Final = 10

ZONE_NONE: Final = 0
ZONE_OFFSET: Final = 1
ZONE_NAMED_OFFSET: Final = 2
ZONE_KEY: Final = 3

_FIRST_FIXSTR: Final = 0xA0
_LAST_FIXSTR: Final = 0xBF
_BIN8: Final = 0xC4
_BIN16: Final = 0xC5
_MARKED: Final = b"\xc1"
_MARKED_BYTE: Final = 0xC1

_DATETIME: Final = struct.Struct(">HBBBBBIB")
_DATE: Final = struct.Struct(">HBB")
_TIME: Final = struct.Struct(">BBBIB")
_TIMEDELTA: Final = struct.Struct(">iII")
_OFFSET: Final = struct.Struct(">q")
_MICROSECOND: Final = timedelta(microseconds=1)

_MARKS: Final[dict[type, msgpack.ExtType]] = {
    tuple: msgpack.ExtType(EXT_TUPLE, b""),
    set: msgpack.ExtType(EXT_SET, b""),
    frozenset: msgpack.ExtType(EXT_FROZENSET, b""),
}
_CONTAINERS: Final[frozenset[type]] = frozenset((list, dict, *_MARKS))


def dumps(value: Any) -> bytes:
    """Return the value as bytes, or raise ``SerializationError``."""
    # A Packer per call, as packb makes one: one Packer must not be used by two threads at once.
    error: BaseException
    try:
        marks = type(value) not in IMMUTABLE_SCALARS and _has_marks(value, 0)
        packed: bytes = msgpack.Packer(strict_types=True, use_bin_type=True, default=_pack_other).pack(value)
        return _MARKED + packed if marks else packed
    except Exception as caught:  # noqa: BLE001 - a cache must not raise what its caller cannot know of
        error = caught
    # Raised outside of the handler: the exceptions of the packer hold the value.
    raise explain(value, _MSGPACK, error)


def _has_marks(value: Any, depth: int) -> bool:
    """Return whether a container holds a tuple, set or frozenset; raise if it holds what is not stored exactly.

    The packer alone does not do: it would take bytearray, memoryview and its own ExtType and Timestamp.
    """
    kind = type(value)
    if kind not in _CONTAINERS or depth >= MAX_NESTING:
        raise Refused
    depth += 1
    marks = kind in _MARKS
    if kind is dict:
        if not IMMUTABLE_SCALARS.issuperset(map(type, value)):
            for item in value:
                if type(item) not in IMMUTABLE_SCALARS and _has_marks(item, depth):
                    marks = True
        value = value.values()
    if not IMMUTABLE_SCALARS.issuperset(map(type, value)):
        for item in value:
            if type(item) not in IMMUTABLE_SCALARS and _has_marks(item, depth):
                marks = True
    return marks


def _pack_other(value: Any) -> Any:
    """Return what stands for a value that msgpack has no type for: an extension, or a list behind a mark."""
    mark = _MARKS.get(type(value))
    if mark is not None:
        return [mark, *value]
    pack = _PACK.get(type(value))
    if pack is None:
        raise Refused
    return pack(value)


def _pack_big_int(value: int) -> msgpack.ExtType:
    return msgpack.ExtType(EXT_BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _pack_datetime(value: datetime) -> msgpack.ExtType:
    kind, zone = _pack_zone(value.tzinfo)
    head = _DATETIME.pack(
        value.year,
        value.month,
        value.day,
        value.hour,
        value.minute,
        value.second,
        value.microsecond,
        kind << 1 | value.fold,
    )
    return msgpack.ExtType(EXT_DATETIME, head + zone)


def _pack_time(value: time) -> msgpack.ExtType:
    kind, zone = _pack_zone(value.tzinfo)
    head = _TIME.pack(value.hour, value.minute, value.second, value.microsecond, kind << 1 | value.fold)
    return msgpack.ExtType(EXT_TIME, head + zone)


def _pack_zone(zone: tzinfo | None) -> tuple[int, bytes]:
    if zone is None:
        return ZONE_NONE, b""
    if type(zone) is timezone:
        offset = zone.utcoffset(None)
        name = zone.tzname(None)
        packed = _OFFSET.pack(offset // _MICROSECOND)
        if name == timezone(offset).tzname(None):
            return ZONE_OFFSET, packed
        return ZONE_NAMED_OFFSET, packed + name.encode("utf-8")
    if type(zone) is ZoneInfo and zone.key is not None:
        _zone_of(zone.key)
        return ZONE_KEY, zone.key.encode("utf-8")
    raise Refused(
        f"a time zone of type {type_name(type(zone))} has no key to store; "
        "use datetime.timezone or a zoneinfo.ZoneInfo that was made by its key"
    )


def _pack_date(value: date) -> msgpack.ExtType:
    return msgpack.ExtType(EXT_DATE, _DATE.pack(value.year, value.month, value.day))


def _pack_timedelta(value: timedelta) -> msgpack.ExtType:
    return msgpack.ExtType(EXT_TIMEDELTA, _TIMEDELTA.pack(value.days, value.seconds, value.microseconds))


def _pack_decimal(value: Decimal) -> msgpack.ExtType:
    return msgpack.ExtType(EXT_DECIMAL, _decimal_text(value).encode("ascii"))


def _decimal_text(value: Decimal) -> str:
    # str() follows the caller's decimal context: "e" or "E". No other part of the text contains either letter.
    return str(value).replace("e", "E")


def _pack_uuid(value: UUID) -> msgpack.ExtType:
    return msgpack.ExtType(EXT_UUID, value.bytes)


_PACK: Final[dict[type, Callable[[Any], msgpack.ExtType]]] = {
    int: _pack_big_int,
    datetime: _pack_datetime,
    date: _pack_date,
    time: _pack_time,
    timedelta: _pack_timedelta,
    Decimal: _pack_decimal,
    UUID: _pack_uuid,
}


def loads(data: bytes) -> Any:
    """Return the value of bytes, or raise ``SerializationError``."""
    error: BaseException
    try:
        # Bytes and short text need no unpacker; whatever has another length than it says is left to that to refuse.
        head = data[0] if data else 0
        if head > _LAST_FIXSTR:
            size = len(data)
            if head == _BIN16 and size > 2 and size == 3 + (data[1] << 8 | data[2]):
                return data[3:]
            if head == _BIN8 and size > 1 and size == 2 + data[1]:
                return data[2:]
            if head == _MARKED_BYTE:
                return _Marks().unpack(data)
        elif head >= _FIRST_FIXSTR and len(data) == 1 + head - _FIRST_FIXSTR:
            return str(data[1:], "utf-8")
        # timestamp=3: the timestamps of other writers become a datetime, not a type of the msgpack package.
        return msgpack.unpackb(data, strict_map_key=False, ext_hook=_unpack_other, timestamp=3)
    except Exception as caught:  # noqa: BLE001 - damaged bytes must look the same whatever they trip over
        error = caught
    # Raised outside of the handler: the exceptions of the unpacker hold the bytes.
    raise damaged("msgpack", error)


class _Mark:
    """Stands in a list for the type that the list is to become."""

    __slots__ = ("build",)

    def __init__(self, build: Callable[[list[Any]], Any]) -> None:
        self.build = build


_BUILD: Final = {EXT_TUPLE: _Mark(tuple), EXT_SET: _Mark(set), EXT_FROZENSET: _Mark(frozenset)}


class _Marks:
    """Unpacks bytes with marks. One per call, because it counts: each mark must begin a list."""

    __slots__ = ("open",)

    def __init__(self) -> None:
        self.open = 0

    def unpack(self, data: bytes) -> Any:
        value = msgpack.unpackb(
            memoryview(data)[1:],
            strict_map_key=False,
            ext_hook=self._unpack_other,
            list_hook=self._unpack_list,
            timestamp=3,
        )
        if self.open:
            raise Refused("a mark at a wrong place")
        return value

    def _unpack_other(self, code: int, data: bytes) -> Any:
        mark = _BUILD.get(code)
        if mark is None:
            return _unpack_other(code, data)
        if data:
            raise Refused("a mark with a payload")
        self.open += 1
        return mark

    def _unpack_list(self, items: list[Any]) -> Any:
        if not items or type(items[0]) is not _Mark:
            return items
        self.open -= 1
        return items[0].build(items[1:])


def _unpack_other(code: int, data: bytes) -> Any:
    unpack = _UNPACK.get(code)
    if unpack is None:
        raise Refused(f"extension type {code}, perhaps of a newer release")
    return unpack(data)


def _unpack_big_int(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)


def _unpack_datetime(data: bytes) -> datetime:
    year, month, day, hour, minute, second, microsecond, flags = _DATETIME.unpack_from(data)
    zone = _unpack_zone(flags >> 1, data[_DATETIME.size :])
    return datetime(year, month, day, hour, minute, second, microsecond, zone, fold=flags & 1)


def _unpack_time(data: bytes) -> time:
    hour, minute, second, microsecond, flags = _TIME.unpack_from(data)
    zone = _unpack_zone(flags >> 1, data[_TIME.size :])
    return time(hour, minute, second, microsecond, zone, fold=flags & 1)


def _unpack_zone(kind: int, data: bytes) -> tzinfo | None:
    if kind == ZONE_NONE and not data:
        return None
    if kind == ZONE_OFFSET:
        (offset,) = _OFFSET.unpack(data)
        return timezone(timedelta(microseconds=offset))
    if kind == ZONE_NAMED_OFFSET:
        (offset,) = _OFFSET.unpack_from(data)
        return timezone(timedelta(microseconds=offset), data[_OFFSET.size :].decode("utf-8"))
    if kind == ZONE_KEY:
        return _zone_of(data.decode("utf-8"))
    raise Refused("an unknown kind of time zone")


def _zone_of(key: str) -> ZoneInfo:
    zone = None
    with suppress(Exception):  # KeyError, ValueError, OSError: they all mean the same
        zone = ZoneInfo(key)
    if zone is not None:
        return zone
    raise Refused("a time zone that is not installed here; install the tzdata package")


def _unpack_date(data: bytes) -> date:
    return date(*_DATE.unpack(data))


def _unpack_timedelta(data: bytes) -> timedelta:
    return timedelta(*_TIMEDELTA.unpack(data))


def _unpack_decimal(data: bytes) -> Decimal:
    text = data.decode("ascii")
    value = Decimal(text)
    # A caller's decimal context may turn bad text into NaN instead of raising.
    if _decimal_text(value) != text:
        raise Refused("a malformed Decimal")
    return value


def _unpack_uuid(data: bytes) -> UUID:
    return UUID(bytes=data)


_UNPACK: Final[dict[int, Callable[[bytes], Any]]] = {
    EXT_BIG_INT: _unpack_big_int,
    EXT_DATETIME: _unpack_datetime,
    EXT_DATE: _unpack_date,
    EXT_TIME: _unpack_time,
    EXT_TIMEDELTA: _unpack_timedelta,
    EXT_DECIMAL: _unpack_decimal,
    EXT_UUID: _unpack_uuid,
}


def _check_msgpack_scalar(value: Any) -> None:
    msgpack.packb(value, strict_types=True, use_bin_type=True, default=_pack_other)


_MSGPACK: Final = Format("msgpack", IMMUTABLE_SCALARS, _CONTAINERS, _check_msgpack_scalar, str_keys=False)
