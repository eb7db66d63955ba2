"""A serializer as the cache uses it: which codecs there are, and which one an option means."""

from __future__ import annotations

import pickle
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from coherent_cache.errors import ConfigError, SerializationError
from coherent_cache.serializers import json_codec, msgpack_codec, pickle_codec
from coherent_cache.serializers.compression import Compressor
from coherent_cache.serializers.exact import type_name

if TYPE_CHECKING:
    from collections.abc import Callable

CODE_MSGPACK: Final = 1
CODE_JSON: Final = 2
CODE_PICKLE: Final = 3
CODE_CUSTOM: Final = 255


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
        compressor: how large values are compressed in Redis; None for not at all.
    """

    code: int
    name: str
    dumps: Callable[[Any], bytes]
    loads: Callable[[bytes], Any]
    compressor: Compressor | None = None

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
        return Codec(CODE_MSGPACK, "msgpack", msgpack_codec.dumps, msgpack_codec.loads)
    if isinstance(spec, str) and spec == "json":
        return Codec(CODE_JSON, "json", json_codec.dumps, json_codec.loads)
    if (isinstance(spec, str) and spec == "pickle") or spec is pickle:
        warnings.warn(
            "serializer='pickle': whoever can write to this Redis can execute code in this process; "
            "use it only with a Redis that nobody else can reach, or prefer 'msgpack'",
            UserWarning,
            stacklevel=stacklevel,
        )
        return Codec(CODE_PICKLE, "pickle", pickle_codec.dumps, pickle_codec.loads)
    dumps, loads = getattr(spec, "dumps", None), getattr(spec, "loads", None)
    if callable(dumps) and callable(loads):
        return _custom_codec(spec, dumps, loads)
    what = repr(spec) if isinstance(spec, str) else f"an object of type {type_name(type(spec))}"
    raise ConfigError(
        "serializer", f"must be 'msgpack', 'json', 'pickle' or an object with dumps and loads; got {what}"
    )


def _custom_codec(spec: object, dumps: Callable[[Any], Any], loads: Callable[[bytes], Any]) -> Codec:
    name = getattr(spec, "__name__", None)
    if not isinstance(name, str):
        name = type_name(type(spec))

    def encode(value: Any) -> bytes:
        try:
            data = dumps(value)
        except Exception as error:
            raise SerializationError(
                f"serializer {name!r} cannot encode the value of type {type_name(type(value))} ({type(error).__name__})"
            ) from error
        if not isinstance(data, bytes):
            raise SerializationError(f"dumps of serializer {name!r} returned {type_name(type(data))} instead of bytes")
        return data

    def decode(data: bytes) -> Any:
        try:
            return loads(data)
        except Exception as error:
            raise SerializationError(f"serializer {name!r} cannot decode it ({type(error).__name__})") from error

    return Codec(CODE_CUSTOM, name, encode, decode)


_SAFE: Final[dict[int, Callable[[bytes], Any]]] = {CODE_MSGPACK: msgpack_codec.loads, CODE_JSON: json_codec.loads}
