"""Compression of payloads: optional when writing, always undone when reading.

How a payload is compressed is told by its envelope's flags (see :mod:`coherent_cache.wire`), so that instances with
other options, or none, read it all the same::

    0  not at all
    1  zlib, a whole stream of RFC 1950
    2  zstd, one frame of RFC 8878

Both are read with a bound: bytes that would become more than that are refused before they have.
"""

from __future__ import annotations

import sys
import zlib
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from coherent_cache.errors import ConfigError, SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable

COMPRESSION_NONE: Final = 0
COMPRESSION_ZLIB: Final = 1
COMPRESSION_ZSTD: Final = 2

ZLIB_LEVEL: Final = 1
"""Level 6 takes three times as long for documents of 10 KiB, and saves 5 % more."""

ZSTD_LEVEL: Final = 3
"""Zstandard's own default."""

ZSTD_WINDOW_LOG: Final = 23
"""Largest window that is read, as a power of two: the 8 MiB that every reader of Zstandard should support."""

_EXTRA: Final = "install the extra: pip install 'coherent-cache[zstd]'"


@dataclass(frozen=True, slots=True)
class Compressor:
    """A way to compress. Built by :func:`make_compressor`; safe to share between threads.

    Attributes:
        code: the number in the envelope's flags.
        compress: bytes to fewer bytes, or to more if they have no pattern.
    """

    code: int
    compress: Callable[[bytes], bytes]


def make_compressor(name: str | None) -> Compressor | None:
    """Return what the option ``compress`` means, one of "zlib", "zstd" and None.

    Raises:
        ConfigError: "zstd" is not installed here; names the extra.
    """
    if name is None:
        return None
    if name == "zlib":
        return Compressor(COMPRESSION_ZLIB, lambda data: zlib.compress(data, ZLIB_LEVEL))
    zstd = _zstd()
    if zstd is None:
        raise ConfigError("compress", f"'zstd' is not installed here; {_EXTRA}")
    return Compressor(COMPRESSION_ZSTD, lambda data: zstd.compress(data, ZSTD_LEVEL))


def decompress(data: bytes, code: int, limit: int) -> bytes:
    """Undo the compression with this code.

    Args:
        data: a payload as it is stored.
        code: what the flags of its envelope say.
        limit: most bytes that it may become.

    Raises:
        SerializationError: damaged, larger than ``limit``, or of a kind that is not installed here.
    """
    if code == COMPRESSION_NONE:
        return data
    name, make = _DECOMPRESSORS[code]
    decompressor = make()
    error: str | None = None
    payload = b""
    try:
        # One byte more than allowed tells that there is more.
        payload = decompressor.decompress(data, limit + 1)
        if len(payload) > limit:
            error = f"the stored bytes decompress to more than max_value_bytes allows ({limit:,})"
        elif not decompressor.eof or decompressor.unused_data:
            error = f"the stored bytes are not what {name} writes (truncated or overlong)"
    except Exception as caught:  # noqa: BLE001 - damaged bytes must look the same whatever they trip over
        error = f"the stored bytes are not what {name} writes ({type(caught).__name__})"
    if error is not None:
        raise SerializationError(error)
    return payload


def _zstd_decompressor() -> Any:
    zstd = _zstd()
    if zstd is None:
        raise SerializationError(f"stored with compress='zstd', which is not installed here; {_EXTRA}")
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG})


@cache
def _zstd() -> ModuleType | None:
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd  # noqa: PLC0415 - optional
        else:
            from backports import zstd  # noqa: PLC0415 - optional
    except ImportError:
        return None
    return zstd  # type: ignore[no-any-return, unused-ignore]


_DECOMPRESSORS: Final[dict[int, tuple[str, Callable[[], Any]]]] = {
    COMPRESSION_ZLIB: ("zlib", zlib.decompressobj),
    COMPRESSION_ZSTD: ("zstd", _zstd_decompressor),
}
