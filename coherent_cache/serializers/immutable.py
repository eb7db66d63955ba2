"""What callers may share: values that nobody can change."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

IMMUTABLE_ITEMS: Final = 10_000
"""Items that :func:`is_immutable` looks at before it gives up and answers False."""

IMMUTABLE_SCALARS: Final[frozenset[type]] = frozenset(
    (type(None), bool, int, float, str, bytes, datetime, date, time, timedelta, Decimal, UUID)
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
