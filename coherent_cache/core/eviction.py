"""Eviction policies: which entry goes when a limit of the local tier is reached."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace
from random import Random
from typing import ClassVar

from coherent_cache.core.entries import CountedEntry, Entry


class Policy:
    """Chooses victims: the entry of the lowest ``rank``. A subclass listed in ``POLICIES`` is a new policy.

    The candidates form a heap, built at the first eviction, so that a tier that never fills pays nothing. It is lazy:
    a candidate whose rank has grown is put back when its turn comes; one whose entry is gone or was replaced is known
    by its birth and skipped. Beyond 2 x entries + 64 candidates all are dropped, and the heap is built anew when next
    needed. As in cachetools, a replacement is a use: the latest one for "lru", one more for "lfu" (the key keeps its
    frequency), and a new place at the back for "fifo".
    """

    name: ClassVar[str]

    def __init__(self, entries: dict[str, Entry], rng: Random) -> None:
        self._candidates: list[tuple[int, int, str]] | None = None  # rank, birth, key
        self._entries = entries
        self._rng = rng

    @property
    def takes_note(self) -> bool:
        """Whether insertions must be reported one by one."""
        return self._candidates is not None

    def rank(self, entry: Entry) -> int:
        """Return the rank, which may only grow while the entry lives."""
        return entry.birth

    def admit(self, entry: Entry, stamp: int, replaced: Entry | None) -> Entry:  # noqa: ARG002 - for those that count
        """Stamp the first use and return the object to store, which another class may stand in for."""
        entry.used = stamp
        return entry

    def on_insert(self, key: str, entry: Entry) -> None:
        """Take note of an entry just stored."""
        if self._candidates is not None:
            heappush(self._candidates, (self.rank(entry), entry.birth, key))
            self.on_remove()

    def on_remove(self) -> None:
        """Take note that entries were removed or replaced: keep the number of dead candidates in bounds."""
        if self._candidates is not None and len(self._candidates) > 2 * len(self._entries) + 64:
            self._candidates = None

    def victim(self) -> str:
        """Return the key to evict, which the caller must remove at once. There must be an entry."""
        if self._candidates is None:
            self._candidates = [(self.rank(entry), entry.birth, key) for key, entry in self._entries.items()]
            heapify(self._candidates)
        return self._take(self._candidates)

    def faults(self) -> Iterator[str]:
        """Yield what is wrong with the candidates, if anything. No reader may run meanwhile."""
        candidates = self._candidates
        if candidates is None:
            return
        if len(candidates) > 2 * len(self._entries) + 64:
            yield f"policy {self.name} holds {len(candidates)} candidates for {len(self._entries)} entries"
        live = sorted(key for _, birth, key in candidates if self._is_live(birth, key))
        if live != sorted(self._entries):
            yield f"policy {self.name} has the candidates {live} for the entries {sorted(self._entries)}"

    def _is_live(self, birth: int, key: str) -> bool:
        entry = self._entries.get(key)
        return entry is not None and entry.birth == birth

    def _take(self, heap: list[tuple[int, int, str]]) -> str:
        patience = len(heap)  # readers go on stamping: without a limit they could keep this loop running
        while True:
            rank, birth, key = heap[0]
            entry = self._entries.get(key)
            if entry is None or entry.birth != birth:
                heappop(heap)
            elif (present := self.rank(entry)) == rank or patience == 0:
                heappop(heap)
                return key
            else:
                heapreplace(heap, (present, birth, key))
                patience -= 1


class LruPolicy(Policy):
    """The least recently used entry, exactly: hits only write their stamp."""

    name = "lru"

    def rank(self, entry: Entry) -> int:
        """Return the stamp of the last use."""
        return entry.used


class LfuPolicy(Policy):
    """The entry with the fewest uses, of several the least recently used one. Frequencies do not age."""

    name = "lfu"
    takes_note = True

    def admit(self, entry: Entry, stamp: int, replaced: Entry | None) -> Entry:
        """Return a ``CountedEntry`` with one use more than the entry that it replaces."""
        before = replaced.frequency if isinstance(replaced, CountedEntry) else 0
        return CountedEntry(entry, stamp=stamp, frequency=before + 1)

    def rank(self, entry: Entry) -> int:
        """Return frequency and stamp as one number; a stamp has far fewer than 64 bits."""
        assert isinstance(entry, CountedEntry)
        return entry.frequency << 64 | entry.used


class FifoPolicy(Policy):
    """The entry that was stored first."""

    name = "fifo"


class RandomPolicy(Policy):
    """Any entry, each equally likely: a dead candidate that is drawn is removed, and the draw repeated."""

    name = "random"

    def _take(self, heap: list[tuple[int, int, str]]) -> str:
        while True:
            at = self._rng.randrange(len(heap))
            heap[at], heap[-1] = heap[-1], heap[at]
            _, birth, key = heap.pop()
            if self._is_live(birth, key):
                return key


POLICIES = {policy.name: policy for policy in (LruPolicy, LfuPolicy, FifoPolicy, RandomPolicy)}
