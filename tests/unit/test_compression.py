"""Compressed payloads come back, whoever reads them; damaged or boundless ones end in an error, not in the memory."""

from __future__ import annotations

import sys
import tracemalloc
import zlib

import pytest

from coherent_cache.errors import ConfigError, SerializationError
from coherent_cache.serializers import compression
from coherent_cache.serializers.compression import decompress, make_compressor

LIMIT = 1_000_000
PAYLOAD = b'{"name": "Ada", "score": 1}' * 100

CODES = {"zlib": 1, "zstd": 2}
every_name = pytest.mark.parametrize("name", CODES, indirect=True)


@pytest.fixture
def name(request):
    if request.param == "zstd":
        pytest.importorskip("backports.zstd" if sys.version_info < (3, 14) else "compression.zstd")
    return request.param


@pytest.fixture
def without_zstd(monkeypatch):
    for module in ("backports.zstd", "compression.zstd", "backports", "compression"):
        monkeypatch.setitem(sys.modules, module, None)
    compression._zstd.cache_clear()
    yield
    compression._zstd.cache_clear()


def test_the_codes_of_the_wire_never_change():
    assert (compression.COMPRESSION_NONE, compression.COMPRESSION_ZLIB, compression.COMPRESSION_ZSTD) == (0, 1, 2)


@every_name
@pytest.mark.parametrize("payload", [b"", b"x", PAYLOAD, bytes(range(256)) * 10, bytes(LIMIT)])
def test_what_is_compressed_comes_back(name, payload):
    compressor = make_compressor(name)

    assert compressor.code == CODES[name]
    assert decompress(compressor.compress(payload), compressor.code, LIMIT) == payload


@every_name
def test_what_has_a_pattern_gets_smaller(name):
    assert len(make_compressor(name).compress(PAYLOAD)) < len(PAYLOAD) / 10


def test_what_is_not_compressed_is_left_alone():
    assert make_compressor(None) is None
    assert decompress(PAYLOAD, 0, 1) is PAYLOAD


@every_name
def test_the_bound_is_exact(name):
    data = make_compressor(name).compress(bytes(1000))

    assert decompress(data, CODES[name], 1000) == bytes(1000)
    with pytest.raises(SerializationError, match=r"more than max_value_bytes allows \(999\)"):
        decompress(data, CODES[name], 999)


@every_name
def test_a_bomb_never_fills_the_memory(name):
    data = make_compressor(name).compress(bytes(200_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(SerializationError, match="max_value_bytes"):
            decompress(data, CODES[name], LIMIT)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 10 * LIMIT


@every_name
@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data + data,
        lambda data: b"",
        lambda data: b"\0" + data[1:],
        lambda data: b"no compressed bytes",
    ],
    ids=["truncated", "overlong", "twice", "empty", "damaged", "something else"],
)
def test_damaged_bytes_are_a_clean_error(name, spoil):
    data = spoil(make_compressor(name).compress(PAYLOAD))

    with pytest.raises(SerializationError, match=f"not what {name} writes") as caught:
        decompress(data, CODES[name], LIMIT)

    assert caught.value.__context__ is None, "the exceptions of decompressors may hold the bytes"


def test_one_algorithms_bytes_are_not_taken_for_anothers():
    with pytest.raises(SerializationError, match="not what zlib writes"):
        decompress(zlib.compress(PAYLOAD)[2:], CODES["zlib"], LIMIT)


@pytest.mark.usefixtures("without_zstd")
def test_without_the_extra_the_option_names_it():
    with pytest.raises(ConfigError, match=r"compress: 'zstd' is not installed.*coherent-cache\[zstd\]") as caught:
        make_compressor("zstd")

    assert caught.value.option == "compress"
    assert make_compressor("zlib").compress(PAYLOAD)


@pytest.mark.usefixtures("without_zstd")
def test_without_the_extra_reading_names_it():
    with pytest.raises(SerializationError, match=r"coherent-cache\[zstd\]"):
        decompress(b"whatever", CODES["zstd"], LIMIT)
