"""Values <-> bytes: what a value becomes inside an envelope, and what may come back out of one.

This module is pure: no I/O of its own, no clock, no state. (One exception is forced by its subject: to rebuild a zone
of :mod:`zoneinfo`, Python reads its table of time zones.)

Which codec wrote a value is one byte of its envelope:

====  ===========  ==========================================================================================
code  serializer   takes
====  ===========  ==========================================================================================
1     ``msgpack``  the default. None, bool, int of any size, float, str, bytes, list, tuple, dict (any key that is
                   hashable and of these types), set, frozenset, datetime, date, time, timedelta, Decimal, UUID
2     ``json``     None, bool, int, finite float, str, list, dict with str keys
3     ``pickle``   anything that pickles; opt-in, because who can write to Redis can then execute code here
255   custom       whatever an object with ``dumps`` and ``loads`` takes
====  ===========  ==========================================================================================

**Exactness.** ``msgpack`` and ``json`` give back the same value *of the same type*, or refuse the value before anything
is sent. So subclasses (an enum, ``OrderedDict``, a named tuple), ``bytearray``, dataclasses and other objects are
refused rather than changed silently; so are strings with lone surrogates, structures that contain themselves, and
structures of more than :data:`MAX_NESTING` containers inside one another. Not kept, because it is not a part of a
value's equality: that one object occurred twice in a structure, the order of a set, and ``UUID.is_safe``.

**Mixed fleets.** An instance reads what it writes, and also what the other of ``msgpack`` and ``json`` wrote, so that
a rolling change between these two keeps the entries readable. Pickled bytes are unpickled by an instance whose own
serializer is ``pickle``, never by another. All custom serializers have the one code 255: who changes the format of a
custom serializer changes the namespace too.

**Wire format of msgpack.** Two releases share it, so a number below never changes its meaning. All numbers are
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

import json
import pickle
import struct
import warnings
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack

from coherent_cache.errors import ConfigError, SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CODE_MSGPACK: Final = 1
CODE_JSON: Final = 2
CODE_PICKLE: Final = 3
CODE_CUSTOM: Final = 255

MAX_NESTING: Final = 128
"""Containers inside one another that msgpack and json take. Real values rarely have ten; the parsers allow 500."""

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

PICKLE_PROTOCOL: Final = 5
"""The newest protocol that every supported Python reads. A constant, so that one fleet may run several Pythons."""

IMMUTABLE_ITEMS: Final = 10_000
"""Items that :func:`is_immutable` looks at before it gives up and answers False."""

LONGEST_STEP: Final = 40
"""Characters of a dict key that an error message shows; a longer one is data rather than a name."""

LONGEST_PATH: Final = 200
"""Characters of a path that an error message shows."""

_MARKED: Final = b"\xc1"
_MARKED_BYTE: Final = 0xC1

_DATETIME: Final = struct.Struct(">HBBBBBIB")
_DATE: Final = struct.Struct(">HBB")
_TIME: Final = struct.Struct(">BBBIB")
_TIMEDELTA: Final = struct.Struct(">iII")
_OFFSET: Final = struct.Struct(">q")
_MICROSECOND: Final = timedelta(microseconds=1)

IMMUTABLE_SCALARS: Final[frozenset[type]] = frozenset(
    (type(None), bool, int, float, str, bytes, datetime, date, time, timedelta, Decimal, UUID)
)
_JSON_SCALARS: Final[frozenset[type]] = frozenset((type(None), bool, int, float, str))
_JSON_CONTAINERS: Final[frozenset[type]] = frozenset((list, dict))
_MARKS: Final[dict[type, msgpack.ExtType]] = {
    tuple: msgpack.ExtType(EXT_TUPLE, b""),
    set: msgpack.ExtType(EXT_SET, b""),
    frozenset: msgpack.ExtType(EXT_FROZENSET, b""),
}
_CONTAINERS: Final[frozenset[type]] = frozenset((list, dict, *_MARKS))


class Serializer(Protocol):
    """What a custom serializer offers. Both methods may be called by several threads at once."""

    def dumps(self, value: Any, /) -> bytes:
        """Return the value as bytes, or raise anything: it becomes a ``SerializationError``."""
        ...

    def loads(self, data: bytes, /) -> Any:
        """Return the value that ``dumps`` made the bytes from, or raise anything, as above."""
        ...


@dataclass(frozen=True, slots=True)
class Codec:
    """A serializer as the cache uses it. Built by :func:`make_codec`; safe to share between threads.

    Attributes:
        code: the number that each envelope carries, see the table of the module.
        name: "msgpack", "json", "pickle", or the type of a custom serializer.
        dumps: value to bytes; raises nothing but ``SerializationError``.
        loads: bytes of this codec to value; raises nothing but ``SerializationError``.
    """

    code: int
    name: str
    dumps: Callable[[Any], bytes]
    loads: Callable[[bytes], Any]

    def encode(self, value: Any) -> bytes:
        """Return the value as bytes, to be stored under ``code``.

        Raises:
            SerializationError: the value cannot be stored; names the type and where it is, never the value.
        """
        return self.dumps(value)

    def decode(self, data: bytes, code: int) -> Any:
        """Return the value of bytes that were stored under codec number ``code``.

        Raises:
            SerializationError: the bytes are damaged, or were written by a serializer that this one does not read.
        """
        if code == self.code:
            return self.loads(data)
        safe = _SAFE.get(code)
        if safe is not None:
            return safe(data)
        raise SerializationError(self._mismatch(code))

    def _mismatch(self, code: int) -> str:
        remedy = "configure the same serializer on every instance of the namespace, or delete the entry"
        if code == CODE_PICKLE:
            return (
                f"stored with serializer 'pickle', but this instance has {self.name!r} and never unpickles "
                f"unless its own serializer is 'pickle'; {remedy}"
            )
        if code == CODE_CUSTOM:
            return f"stored with a custom serializer, but this instance has {self.name!r}; {remedy}"
        return (
            f"stored with serializer number {code}, which this release does not know (a newer release may have "
            f"written it); this instance has {self.name!r}; {remedy}"
        )


def make_codec(spec: object, *, stacklevel: int = 2) -> Codec:
    """Return the codec for the ``serializer`` option.

    Args:
        spec: "msgpack", "json", "pickle" (warns: see the module), an object with ``dumps`` and ``loads``, or a Codec.
        stacklevel: whose line the warning about pickle names; 2 is the caller.

    Raises:
        ConfigError: ``spec`` is none of these.
    """
    if isinstance(spec, Codec):
        return spec
    if isinstance(spec, str) and spec == "msgpack":
        return Codec(CODE_MSGPACK, "msgpack", _msgpack_dumps, _msgpack_loads)
    if isinstance(spec, str) and spec == "json":
        return Codec(CODE_JSON, "json", _json_dumps, _json_loads)
    if (isinstance(spec, str) and spec == "pickle") or spec is pickle:
        warnings.warn(
            "serializer='pickle': whoever can write to this Redis can execute code in this process; "
            "use it only with a Redis that nobody else can reach, or prefer 'msgpack'",
            UserWarning,
            stacklevel=stacklevel,
        )
        return Codec(CODE_PICKLE, "pickle", _pickle_dumps, _pickle_loads)
    dumps, loads = getattr(spec, "dumps", None), getattr(spec, "loads", None)
    if callable(dumps) and callable(loads):
        return _custom_codec(spec, dumps, loads)
    what = repr(spec) if isinstance(spec, str) else f"an object of type {_type_name(type(spec))}"
    raise ConfigError(
        "serializer", f"must be 'msgpack', 'json', 'pickle' or an object with dumps and loads; got {what}"
    )


def is_immutable(value: object) -> bool:
    """Return whether callers may share this very object, because none of them can change it.

    True for the exact types None, bool, int, float, str, bytes, datetime, date, time, timedelta, Decimal and UUID, and
    for tuples and frozensets that contain nothing else. False if in doubt: also for a subclass, and for more than
    :data:`IMMUTABLE_ITEMS` items.
    """
    kind = type(value)
    if kind in IMMUTABLE_SCALARS:
        return True
    if kind is not tuple and kind is not frozenset:
        return False
    pending: list[Any] = [value]
    seen = 0
    while pending:
        items = pending.pop()
        seen += len(items)
        if seen > IMMUTABLE_ITEMS:
            return False
        for item in items:
            kind = type(item)
            if kind in IMMUTABLE_SCALARS:
                continue
            if kind is not tuple and kind is not frozenset:
                return False
            pending.append(item)
    return True


# --- what both strict codecs share ------------------------------------------------------------------------------------


class _Refused(Exception):
    """A value or its bytes are refused. The text is fit for users: it contains types, never values."""


class _Format:
    """What one strict codec takes: the types, and a check of a single scalar."""

    __slots__ = ("check", "containers", "name", "scalars", "str_keys")

    def __init__(
        self,
        name: str,
        scalars: frozenset[type],
        containers: frozenset[type],
        check: Callable[[Any], object],
        *,
        str_keys: bool,
    ) -> None:
        self.name = name
        self.scalars = scalars
        self.containers = containers
        self.check = check
        self.str_keys = str_keys


def _explain(value: Any, form: _Format, error: BaseException) -> SerializationError:
    """Return the error for a value whose encoding failed, with the path to the first offender.

    Slow on purpose: the fast way only finds out *that* something is wrong.
    """
    try:
        found = _find(value, form, "$", ())
    except (RecursionError, RuntimeError, MemoryError):
        found = None
    if found is None:
        return SerializationError(
            f"the value of type {_type_name(type(value))} cannot be encoded by serializer {form.name!r} "
            f"({type(error).__name__}); was it changed by another thread meanwhile?"
        )
    path, reason = found
    if len(path) > LONGEST_PATH:
        path = f"{path[:LONGEST_PATH]}..."
    return SerializationError(f"{path}: {reason}")


def _find(value: Any, form: _Format, path: str, above: tuple[int, ...]) -> tuple[str, str] | None:
    """Return path and reason of the first part that ``form`` does not take, or None if there is none."""
    reason = _scalar_problem(value, form) if type(value) in form.scalars else _container_problem(value, form, above)
    if reason is not None:
        return path, reason
    if type(value) in form.containers:
        for item, step in _parts(value):
            found = _find(item, form, path + step, (*above, id(value)))
            if found is not None:
                return found
    return None


def _scalar_problem(value: Any, form: _Format) -> str | None:
    name = _type_name(type(value))
    try:
        form.check(value)
    except UnicodeEncodeError:
        return f"{name} with lone surrogates, which UTF-8 cannot hold"
    except _Refused as refused:
        return str(refused)
    except Exception as error:  # noqa: BLE001 - whatever it is, this scalar is the offender
        return f"{name} that cannot be encoded ({type(error).__name__})"
    return None


def _container_problem(value: Any, form: _Format, above: tuple[int, ...]) -> str | None:
    name = _type_name(type(value))
    if type(value) not in form.containers:
        return f"type {name} is not stored exactly by serializer {form.name!r}; convert it, or use another serializer"
    if id(value) in above:
        return f"the {name} contains itself"
    if len(above) >= MAX_NESTING:
        return f"more than {MAX_NESTING} containers inside one another"
    if form.str_keys and type(value) is dict:
        for key in value:
            if type(key) is not str:
                return f"the dict has a key of type {_type_name(type(key))}; {form.name} takes str keys only"
    return None


def _parts(value: Any) -> Iterator[tuple[Any, str]]:
    """Yield the parts of a container, each with its step of the path. Keys that may be data are shown by type only."""
    if type(value) is dict:
        for key, item in value.items():
            yield key, "<key>"
            plain = type(key) is str and key.isascii() and key.isidentifier() and len(key) <= LONGEST_STEP
            yield item, f".{key}" if plain else f"[<{_type_name(type(key))}>]"
    elif type(value) is list or type(value) is tuple:
        for index, item in enumerate(value):
            yield item, f"[{index}]"
    else:
        for item in value:
            yield item, "<item>"


def _type_name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _damaged(name: str, error: BaseException) -> SerializationError:
    reason = str(error) if isinstance(error, _Refused) else type(error).__name__
    return SerializationError(f"the stored bytes are not what serializer {name!r} writes ({reason})")


# --- msgpack ----------------------------------------------------------------------------------------------------------


def _msgpack_dumps(value: Any) -> bytes:
    # A Packer per call, as packb makes one: one Packer must not be used by two threads at once.
    error: BaseException
    try:
        marks = type(value) not in IMMUTABLE_SCALARS and _has_marks(value, 0)
        packed: bytes = msgpack.Packer(strict_types=True, use_bin_type=True, default=_pack_other).pack(value)
        return _MARKED + packed if marks else packed
    except Exception as caught:  # noqa: BLE001 - a cache must not raise what its caller cannot know of
        error = caught
    # Raised outside of the handler: the exceptions of the packer hold the value.
    raise _explain(value, _MSGPACK, error)


def _has_marks(value: Any, depth: int) -> bool:
    """Return whether a container holds a tuple, set or frozenset; raise if it holds what is not stored exactly.

    The packer alone does not do: it would take bytearray, memoryview and its own ExtType and Timestamp.
    """
    kind = type(value)
    if kind not in _CONTAINERS or depth >= MAX_NESTING:
        raise _Refused
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
        raise _Refused
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
    raise _Refused(
        f"a time zone of type {_type_name(type(zone))} has no key to store; "
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


def _msgpack_loads(data: bytes) -> Any:
    error: BaseException
    try:
        if data and data[0] == _MARKED_BYTE:
            return _Marks().unpack(data)
        # timestamp=3: the timestamps of other writers become a datetime, not a type of the msgpack package.
        return msgpack.unpackb(data, strict_map_key=False, ext_hook=_unpack_other, timestamp=3)
    except Exception as caught:  # noqa: BLE001 - damaged bytes must look the same whatever they trip over
        error = caught
    # Raised outside of the handler: the exceptions of the unpacker hold the bytes.
    raise _damaged("msgpack", error)


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
            raise _Refused("a mark at a wrong place")
        return value

    def _unpack_other(self, code: int, data: bytes) -> Any:
        mark = _BUILD.get(code)
        if mark is None:
            return _unpack_other(code, data)
        if data:
            raise _Refused("a mark with a payload")
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
        raise _Refused(f"extension type {code}, perhaps of a newer release")
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
    raise _Refused("an unknown kind of time zone")


def _zone_of(key: str) -> ZoneInfo:
    zone = None
    with suppress(Exception):  # KeyError, ValueError, OSError: they all mean the same
        zone = ZoneInfo(key)
    if zone is not None:
        return zone
    raise _Refused("a time zone that is not installed here; install the tzdata package")


def _unpack_date(data: bytes) -> date:
    return date(*_DATE.unpack(data))


def _unpack_timedelta(data: bytes) -> timedelta:
    return timedelta(*_TIMEDELTA.unpack(data))


def _unpack_decimal(data: bytes) -> Decimal:
    text = data.decode("ascii")
    value = Decimal(text)
    # A caller's decimal context may turn bad text into NaN instead of raising.
    if _decimal_text(value) != text:
        raise _Refused("a malformed Decimal")
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


_MSGPACK: Final = _Format("msgpack", IMMUTABLE_SCALARS, _CONTAINERS, _check_msgpack_scalar, str_keys=False)


# --- json -------------------------------------------------------------------------------------------------------------


def _refuse_constant(_: str) -> NoReturn:
    raise _Refused("NaN or Infinity")


# ensure_ascii=False: with escapes, two lone surrogates would come back as one character.
_JSON_ENCODER: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
)
_JSON_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant)


def _json_dumps(value: Any) -> bytes:
    error: BaseException
    try:
        if type(value) not in _JSON_SCALARS:
            _check_json(value, 0)
        return _JSON_ENCODER.encode(value).encode("utf-8")
    except Exception as caught:  # noqa: BLE001 - as in _msgpack_dumps
        error = caught
    raise _explain(value, _JSON, error)


def _check_json(value: Any, depth: int) -> None:
    kind = type(value)
    if kind not in _JSON_CONTAINERS or depth >= MAX_NESTING:
        raise _Refused
    if kind is dict:
        if not _STR_ONLY.issuperset(map(type, value)):
            raise _Refused
        value = value.values()
    if not _JSON_SCALARS.issuperset(map(type, value)):
        for item in value:
            if type(item) not in _JSON_SCALARS:
                _check_json(item, depth + 1)


_STR_ONLY: Final[frozenset[type]] = frozenset((str,))


def _json_loads(data: bytes) -> Any:
    error: BaseException
    try:
        return _JSON_DECODER.decode(data.decode("utf-8"))
    except Exception as caught:  # noqa: BLE001 - as in _msgpack_loads
        error = caught
    raise _damaged("json", error)


def _check_json_scalar(value: Any) -> None:
    if type(value) is float and not (-_INFINITY < value < _INFINITY):
        raise _Refused("a float that is NaN or infinite, which JSON has no number for")
    _JSON_ENCODER.encode(value).encode("utf-8")


_INFINITY: Final = float("inf")

_JSON: Final = _Format("json", _JSON_SCALARS, _JSON_CONTAINERS, _check_json_scalar, str_keys=True)

_SAFE: Final[dict[int, Callable[[bytes], Any]]] = {CODE_MSGPACK: _msgpack_loads, CODE_JSON: _json_loads}


# --- pickle and custom: they run code that is not ours, so the cause is chained for whoever has to find the fault ---


def _pickle_dumps(value: Any) -> bytes:
    try:
        return pickle.dumps(value, protocol=PICKLE_PROTOCOL)
    except Exception as error:
        raise SerializationError(
            f"the value of type {_type_name(type(value))} cannot be pickled ({type(error).__name__})"
        ) from error


def _pickle_loads(data: bytes) -> Any:
    try:
        return pickle.loads(data)  # noqa: S301 - opt-in and warned about, see make_codec
    except Exception as error:
        raise SerializationError(f"the stored bytes cannot be unpickled ({type(error).__name__})") from error


def _custom_codec(spec: object, dumps: Callable[[Any], Any], loads: Callable[[bytes], Any]) -> Codec:
    name = getattr(spec, "__name__", None)
    if not isinstance(name, str):
        name = _type_name(type(spec))

    def encode(value: Any) -> bytes:
        try:
            data = dumps(value)
        except Exception as error:
            raise SerializationError(
                f"serializer {name!r} cannot encode the value of type {_type_name(type(value))} "
                f"({type(error).__name__})"
            ) from error
        if not isinstance(data, bytes):
            raise SerializationError(f"dumps of serializer {name!r} returned {_type_name(type(data))} instead of bytes")
        return data

    def decode(data: bytes) -> Any:
        try:
            return loads(data)
        except Exception as error:
            raise SerializationError(f"serializer {name!r} cannot decode it ({type(error).__name__})") from error

    return Codec(CODE_CUSTOM, name, encode, decode)
