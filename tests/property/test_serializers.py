"""Any value comes back exactly or is refused; any bytes give a value or a SerializationError, nothing else."""

from __future__ import annotations

import contextlib
import datetime as dt
import math
import sys
import zoneinfo

import hypothesis.strategies as st
import msgpack
import pytest
from hypothesis import HealthCheck, example, given, settings

from coherent_cache.errors import SerializationError
from coherent_cache.serializers import CODE_JSON, CODE_MSGPACK, is_immutable, make_codec
from coherent_cache.serializers.compression import COMPRESSION_ZLIB, COMPRESSION_ZSTD, decompress, make_compressor

MSGPACK = make_codec("msgpack")
JSON = make_codec("json")

# A loaded machine is no finding.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

ZONES = st.one_of(
    st.none(),
    st.just(dt.UTC),
    st.builds(
        dt.timezone,
        st.timedeltas(min_value=-dt.timedelta(hours=23, minutes=59), max_value=dt.timedelta(hours=23, minutes=59)),
    ),
    st.builds(dt.timezone, st.just(dt.timedelta(hours=1)), st.text(st.characters(exclude_categories=["Cs"]))),
    st.sampled_from([zoneinfo.ZoneInfo(key) for key in ("Europe/Berlin", "Asia/Kolkata", "UTC")]),
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
# Nothing here is NaN or a signalling NaN: those have unit tests, and would make == useless.
HASHABLE_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(2**200), max_value=2**200),
    st.floats(allow_nan=False),
    TEXT,
    st.binary(),
    st.datetimes(timezones=ZONES),
    st.dates(),
    st.times(timezones=ZONES),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.uuids(),
)
KEYS = st.recursive(
    HASHABLE_SCALARS,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
VALUES = st.recursive(
    HASHABLE_SCALARS | st.sets(KEYS, max_size=4),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.lists(inner, max_size=5).map(tuple),
        st.dictionaries(KEYS, inner, max_size=5),
    ),
    max_leaves=20,
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5),
    max_leaves=20,
)


def shape(value):
    """The value as nested tuples that also name each type, so that == compares types as well."""
    kind = type(value).__name__
    if isinstance(value, (list, tuple)):
        return kind, tuple(map(shape, value))
    if isinstance(value, (set, frozenset)):
        return kind, frozenset(map(shape, value))
    if isinstance(value, dict):
        return kind, tuple((shape(key), shape(item)) for key, item in value.items())
    if isinstance(value, float):
        return kind, value.hex()
    if isinstance(value, (dt.datetime, dt.time)):
        return kind, value.replace(tzinfo=None), value.fold, repr(value.tzinfo)
    return kind, str(value)


@given(VALUES)
@PATIENT
def test_msgpack_gives_back_exactly_what_it_took(value):
    data = MSGPACK.encode(value)
    assert shape(MSGPACK.decode(data, CODE_MSGPACK)) == shape(value)
    assert shape(JSON.decode(data, CODE_MSGPACK)) == shape(value)


@given(JSON_VALUES)
@PATIENT
def test_json_gives_back_exactly_what_it_took(value):
    data = JSON.encode(value)
    assert shape(JSON.decode(data, CODE_JSON)) == shape(value)
    assert shape(MSGPACK.decode(data, CODE_JSON)) == shape(value)


@given(KEYS)
@PATIENT
def test_every_key_is_immutable(value):
    assert is_immutable(value)
    assert not is_immutable((value, [value]))


class Odd:
    """Something that no codec takes."""


@given(st.recursive(VALUES | st.builds(Odd) | st.text() | st.floats(), st.lists, max_leaves=10))
@settings(PATIENT, max_examples=200)
def test_whatever_the_value_encoding_raises_nothing_else(value):
    for codec in (MSGPACK, JSON):
        with contextlib.suppress(SerializationError):
            data = codec.encode(value)
            assert shape(codec.decode(data, codec.code)) == shape(value)


def survives(data, code):
    """Decode; what was accepted must be of the types that the codec itself writes, so that it can be stored again."""
    try:
        value = MSGPACK.decode(data, code)
    except SerializationError as error:
        assert error.__context__ is error.__cause__ is None  # noqa: PT017 - it is not about what is raised but about what it drags along
        return
    try:
        again = MSGPACK.decode(MSGPACK.encode(value), CODE_MSGPACK)
    except SerializationError as error:
        assert "containers inside one another" in error.reason  # noqa: PT017 - the one thing that is taken but not given
        return
    if "nan" not in repr(value).lower():
        assert shape(again) == shape(value)


@given(st.binary())
@settings(PATIENT, max_examples=2_000)
@example(b"\x80" * 3)
@example(b"\xc1\x92\xc7\x00\x02\xc7\x00\x02")
def test_any_bytes_as_msgpack(data):
    survives(data, CODE_MSGPACK)
    survives(b"\xc1" + data, CODE_MSGPACK)


HEADS = st.sampled_from(
    [bytes([byte]) for byte in (*range(0x80, 0xA8), *range(0xC0, 0xE0), 0x01, 0xFF)]
    + [
        b"\xc7\x00\x01",
        b"\xc7\x00\x02",
        b"\xc7\x00\x03",
        b"\x92\xc7\x00\x01",
        b"\x93\xc7\x00\x02",
        b"\xdd\xff\xff\xff\xff",
    ]
)
EXTENSIONS = st.builds(
    lambda code, payload: msgpack.packb(msgpack.ExtType(code, payload)), st.integers(0, 12), st.binary(max_size=24)
)


@given(st.lists(HEADS | EXTENSIONS | st.binary(max_size=4), max_size=40).map(b"".join))
@settings(PATIENT, max_examples=2_000)
def test_bytes_that_look_like_msgpack(data):
    survives(data, CODE_MSGPACK)
    survives(b"\xc1" + data, CODE_MSGPACK)


@given(VALUES, st.data())
@settings(PATIENT, max_examples=300)
def test_damage_to_good_bytes(value, data):
    good = MSGPACK.encode(value)
    place = data.draw(st.integers(0, len(good) - 1))
    survives(good[:place], CODE_MSGPACK)
    survives(good[:place] + bytes([data.draw(st.integers(0, 255))]) + good[place + 1 :], CODE_MSGPACK)


@given(st.binary() | st.text(alphabet='[]{}",:0123456789eE+-. ntfu\\NaIi').map(str.encode))
@settings(PATIENT, max_examples=1_000)
def test_any_bytes_as_json(data):
    try:
        value = JSON.decode(data, CODE_JSON)
    except SerializationError as error:
        assert error.__context__ is error.__cause__ is None  # noqa: PT017 - as above
        return
    assert not (isinstance(value, float) and math.isnan(value))


@given(st.integers(0, 255).filter(lambda code: code not in {CODE_MSGPACK, CODE_JSON}), st.binary())
@PATIENT
def test_no_other_number_is_decoded(code, data):
    for codec in (MSGPACK, JSON):
        with pytest.raises(SerializationError, match="this instance has"):
            codec.decode(data, code)


# --- compression ---


def compressor(code):
    if code == COMPRESSION_ZSTD:
        pytest.importorskip("backports.zstd" if sys.version_info < (3, 14) else "compression.zstd")
    return make_compressor({COMPRESSION_ZLIB: "zlib", COMPRESSION_ZSTD: "zstd"}[code])


every_code = pytest.mark.parametrize("code", [COMPRESSION_ZLIB, COMPRESSION_ZSTD])


@every_code
@given(payload=st.binary(max_size=2000), repeated=st.integers(1, 50))
@PATIENT
def test_what_is_compressed_comes_back(code, payload, repeated):
    payload *= repeated
    assert decompress(compressor(code).compress(payload), code, max(1, len(payload))) == payload


@every_code
@given(payload=st.binary(max_size=300), data=st.data())
@settings(PATIENT, max_examples=500)
def test_damaged_compressed_bytes_are_refused_or_other_bytes_within_the_bound(code, payload, data):
    good = compressor(code).compress(payload)
    place, byte = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(0, 255))
    limit = data.draw(st.integers(1, 400))
    for damaged in (good[:place], good[:place] + bytes([byte]) + good[place + 1 :], bytes([byte]) + good):
        try:
            assert len(decompress(damaged, code, limit)) <= limit
        except SerializationError as error:
            assert error.__context__ is error.__cause__ is None  # noqa: PT017 - as above
