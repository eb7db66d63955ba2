"""The codec ``pickle``: opt-in.

It runs code that is not ours, so causes are chained, for whoever has to find the fault.
"""

from __future__ import annotations

import pickle
from typing import Any, Final

from coherent_cache.errors import SerializationError
from coherent_cache.serializers.exact import type_name

PICKLE_PROTOCOL: Final = 5
"""The newest protocol that every supported Python reads. A constant, so that one fleet may run several Pythons."""


def dumps(value: Any) -> bytes:
    """Return the value as bytes, or raise ``SerializationError``."""
    try:
        return pickle.dumps(value, protocol=PICKLE_PROTOCOL)
    except Exception as error:
        raise SerializationError(
            f"the value of type {type_name(type(value))} cannot be pickled ({type(error).__name__})"
        ) from error


def loads(data: bytes) -> Any:
    """Return the value of bytes, or raise ``SerializationError``."""
    try:
        return pickle.loads(data)  # noqa: S301 - opt-in and warned about, see make_codec
    except Exception as error:
        raise SerializationError(f"the stored bytes cannot be unpickled ({type(error).__name__})") from error
