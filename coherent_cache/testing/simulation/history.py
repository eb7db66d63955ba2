"""The oracle: what each key's value was in the primary in office, and when."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from math import inf
from typing import Final

EXPIRY_SLACK: Final = 0.01
"""Seconds that an expiry may be seen too late: Redis counts milliseconds, and clocks run at different rates."""


class Change:
    """One value of one key, from one change to the next.

    Attributes:
        index: position in the order of all changes.
        first: position when the value was current for the first time; a failover may bring it back.
        key: the key.
        value: number of the value; None for "there is none".
        time: when it became current, in virtual seconds.
        ended: when it ceased to be, by another change.
        expires: when its time to live ends.
        tags: its tags.
    """

    __slots__ = ("ended", "expires", "first", "index", "key", "tags", "time", "value")

    def __init__(
        self, index: int, key: str, value: int | None, time: float, expires: float, tags: tuple[str, ...]
    ) -> None:
        self.index = self.first = index
        self.key = key
        self.value = value
        self.time = time
        self.ended = inf
        self.expires = expires
        self.tags = tags

    @property
    def end(self) -> float:
        """When the value ceased to be current; ``inf`` if it is."""
        return min(self.ended, self.expires + EXPIRY_SLACK)

    def __str__(self) -> str:
        return f"{self.key}={'absent' if self.value is None else f'v{self.value}'}"


class History:
    """All changes of all keys.

    Attributes:
        last: per key, its present value.
        of_value: per value, its latest time as the present one.
        index: of the latest change.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        """Begin with nothing there."""
        self._index = count(1)
        self.index = 0
        self.last = {key: Change(0, key, None, -inf, inf, ()) for key in keys}
        self.of_value: dict[int, Change] = {}

    def record(self, key: str, value: int | None, now: float, expires: float, tags: tuple[str, ...]) -> None:
        """Note what a key's value is now; the same value again may have another time to live."""
        last = self.last[key]
        if last.value == value and (value is None or last.ended == inf):
            last.expires = expires
            return
        last.ended = now
        self.index = next(self._index)
        change = Change(self.index, key, value, now, expires, tags)
        self.last[key] = change
        if value is not None:
            before = self.of_value.get(value)
            if before is not None:
                change.first = before.first
            self.of_value[value] = change

    def record_orphan(self, key: str, value: int, ended: float) -> None:
        """Note a value that a server wrote which was no longer in office: it never was current after ``ended``."""
        if value not in self.of_value:
            change = Change(self.last[key].index, key, value, ended, inf, ())
            change.ended = ended
            self.of_value[value] = change
