"""Entries of the local tier: what is held, why it left, and how much was."""

from __future__ import annotations

from enum import StrEnum
from math import inf
from typing import Any, Final

ENTRY_OVERHEAD_BYTES = 480
"""What an entry costs beside its key and value, in bytes.

Measured with tracemalloc on CPython 3.11 (x86-64), 20-byte keys and 100-byte values that expire, 10,000 to 180,000
entries: 375-395 before the first eviction, 465-470 in a full tier (the heap is built), 520 under "lfu". Of these: the
entry 112, its numbers 150, the headers of key and value 80, the slot of the dict 25-50, the place in the heap 90. Not
accounted: a tag, about 45 per entry if many share it.
"""


class RemovalCause(StrEnum):
    """Why an entry left the local tier. Each removal is counted once, under one cause."""

    SIZE = "size"  # evicted to keep max_entries or max_bytes
    EXPIRED = "expired"  # its lifetime was over when a sweep or an eviction found it
    INVALIDATED = "invalidated"  # a message, a floor or a reply told of a newer version
    REPLACED = "replaced"  # a newer value came for the same key, be it too large to be kept
    FLUSHED = "flushed"  # the whole tier was in doubt
    CLEARED = "cleared"  # clear_local, or a clear of the namespace
    UNPROVEN = "unproven"  # its version is above the position that a resync has proven (P6)


class TierCounts:
    """Counts of one shard, shared by its successive tiers, so that they survive a flush.

    ``inserts`` equals the entries held now plus the sum of ``removed``.

    Attributes:
        inserts: entries stored, replacements included.
        rejected_too_large: entries refused because each alone exceeds ``max_bytes``.
        removed: entries that left, by cause.
    """

    __slots__ = ("inserts", "rejected_too_large", "removed")

    def __init__(self) -> None:
        self.inserts = 0
        self.rejected_too_large = 0
        self.removed = dict.fromkeys(RemovalCause, 0)


_NEVER: Final = -inf


class Entry:
    """One value held locally. It belongs to one insertion: never insert the same object twice.

    Made by :func:`make_entry`: a call of a class with an ``__init__`` costs twice as much, and bulk reads make a
    hundred at a time.

    Attributes:
        value: a shared value, handed out as it is, or a payload that each reader decodes into a private copy.
        deadline: when a shared entry expires, in seconds (inf = never); -inf for a coded one.
        coded_deadline: the same for a coded entry; -inf for a shared one.
        seq: version within the epoch.
        size: bytes accounted, see ``estimated_size``.
        tags: tags that the entry carries.
        used: ``LocalTier.ticks`` at the last use; the only attribute that changes after the insertion.
        birth: number of the insertion; tells this entry from others of the same key.
    """

    __slots__ = ("birth", "coded_deadline", "deadline", "seq", "size", "tags", "used", "value")

    value: Any
    deadline: float
    coded_deadline: float
    seq: int
    size: int
    tags: tuple[str, ...]
    used: int
    birth: int

    @property
    def expires_at(self) -> float:
        """When the entry expires, in seconds; inf = never."""
        return max(self.deadline, self.coded_deadline)

    def is_expired(self, now: float) -> bool:
        """Tell whether the lifetime is over: an entry lives while ``now < expires_at``."""
        return now >= self.expires_at


def make_entry(
    value: Any,
    seq: int,
    size: int,
    expires_at: float = inf,
    shared: bool = True,  # noqa: FBT001, FBT002 - made a hundred at a time
    tags: tuple[str, ...] = (),
) -> Entry:
    """Make an entry; its ``birth`` and ``used`` are set when it is inserted.

    Args:
        value: the value, or its payload.
        seq: version within the epoch.
        size: bytes accounted.
        expires_at: when it expires, in seconds; inf = never.
        shared: whether ``value`` is handed out as it is; else each reader decodes it.
        tags: its tags.
    """
    entry = Entry()
    entry.value = value
    if shared:
        entry.deadline = expires_at
        entry.coded_deadline = _NEVER
    else:
        entry.deadline = _NEVER
        entry.coded_deadline = expires_at
    entry.seq = seq
    entry.size = size
    entry.tags = tags
    return entry


class KeptEntry(Entry):
    """A last known value, kept beyond its time to be served as stale when it cannot be loaded.

    Attributes:
        retry_at: until when no other attempt to load it is made, in seconds of the local clock.
    """

    __slots__ = ("retry_at",)

    def __init__(self, entry: Entry, seconds: float) -> None:
        self.value, self.seq, self.size, self.tags = entry.value, entry.seq, entry.size, entry.tags
        self.deadline, self.coded_deadline = entry.deadline + seconds, entry.coded_deadline + seconds
        self.retry_at = _NEVER


class CountedEntry(Entry):
    """An entry whose every use counts: what "lfu" stores. A hit costs one Python call more.

    Attributes:
        frequency: uses so far, the insertion and each replacement included.
    """

    __slots__ = ("_stamp", "frequency")

    def __init__(self, entry: Entry, *, stamp: int, frequency: int) -> None:
        self.value, self.seq, self.size, self.tags = entry.value, entry.seq, entry.size, entry.tags
        self.deadline, self.coded_deadline, self.birth = entry.deadline, entry.coded_deadline, entry.birth
        self._stamp, self.frequency = stamp, frequency

    @property
    def used(self) -> int:
        """``LocalTier.ticks`` at the last use. Setting it counts one use."""
        return self._stamp

    @used.setter
    def used(self, stamp: int) -> None:
        self.frequency += 1
        self._stamp = stamp
