"""The codec ``json``: exact for what JSON has types for."""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

from coherent_cache.serializers.exact import MAX_NESTING, Format, Refused, damaged, explain

_JSON_SCALARS: Final[frozenset[type]] = frozenset((type(None), bool, int, float, str))
_JSON_CONTAINERS: Final[frozenset[type]] = frozenset((list, dict))


def _refuse_constant(_: str) -> NoReturn:
    raise Refused("NaN or Infinity")


# ensure_ascii=False: with escapes, two lone surrogates would come back as one character.
_JSON_ENCODER: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
)
_JSON_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant)


def dumps(value: Any) -> bytes:
    """Return the value as bytes, or raise ``SerializationError``."""
    error: BaseException
    try:
        if type(value) not in _JSON_SCALARS:
            _check_json(value, 0)
        return _JSON_ENCODER.encode(value).encode("utf-8")
    except Exception as caught:  # noqa: BLE001 - as in msgpack_codec.dumps
        error = caught
    raise explain(value, _JSON, error)


def _check_json(value: Any, depth: int) -> None:
    kind = type(value)
    if kind not in _JSON_CONTAINERS or depth >= MAX_NESTING:
        raise Refused
    if kind is dict:
        if not _STR_ONLY.issuperset(map(type, value)):
            raise Refused
        value = value.values()
    if not _JSON_SCALARS.issuperset(map(type, value)):
        for item in value:
            if type(item) not in _JSON_SCALARS:
                _check_json(item, depth + 1)


_STR_ONLY: Final[frozenset[type]] = frozenset((str,))


def loads(data: bytes) -> Any:
    """Return the value of bytes, or raise ``SerializationError``."""
    error: BaseException
    try:
        return _JSON_DECODER.decode(data.decode("utf-8"))
    except Exception as caught:  # noqa: BLE001 - as in msgpack_codec.loads
        error = caught
    raise damaged("json", error)


def _check_json_scalar(value: Any) -> None:
    if type(value) is float and not (-_INFINITY < value < _INFINITY):
        raise Refused("a float that is NaN or infinite, which JSON has no number for")
    _JSON_ENCODER.encode(value).encode("utf-8")


_INFINITY: Final = float("inf")

_JSON: Final = Format("json", _JSON_SCALARS, _JSON_CONTAINERS, _check_json_scalar, str_keys=True)
