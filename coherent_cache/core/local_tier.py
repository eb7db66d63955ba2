"""The local tier of one shard: entries, limits, eviction, tags, expiration and their counts.

Pure: no clock, no lock, no I/O. ``now`` is a parameter, in seconds of the caller's clock. Every method that changes the
tier requires holding the shard's lock. A reader takes no lock and no call; it inlines this text, in this order
(P4: horizon first, then the clock, then the look-up)::

    tier = self._tier
    if tier.valid_until >= (now := clock()):
        try:
            entry = tier.entries[key]
        except KeyError:
            ...  # a miss
        else:
            if now < entry.deadline:
                tier.ticks = entry.used = tier.ticks + 1
                return entry.value
            if now < entry.coded_deadline:
                tier.ticks = entry.used = tier.ticks + 1
                return decode(entry.value)

What makes that safe: an entry is complete before it enters ``entries`` and only ``used`` changes afterwards, and a
flush replaces the whole tier (``replacement``) rather than empty it under a reader.

One counter, ``ticks``, counts the hits and stamps their order. CPython with a GIL (3.10 and later) switches threads
only at calls and backward jumps; none lies between the load and the store of ``ticks``, so no count is lost. Store
``ticks`` before ``used``: under "lfu" the setter of ``used`` is a call. A build without a GIL may lose increments;
then counts are approximate and so is the order of eviction, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf
from random import Random

from coherent_cache.core.entries import Entry, RemovalCause, TierCounts
from coherent_cache.core.eviction import POLICIES


class LocalTier:
    """The entries of one shard, within limits. Every method that changes it requires holding the shard's lock.

    Attributes:
        valid_until: readers serve hits while ``now <= valid_until``; -inf = never. The shard sets it.
        horizon: everything published before this moment is applied here; -inf = unknown. The shard sets it.
        entries: entry by key. Readers subscript it without a lock; only this class changes it.
        ticks: hits and insertions so far.
        births: insertions so far; also the youngest entry's ``birth``.
        bytes: sum of the entries' sizes.
        max_entries: most entries held at any moment.
        max_bytes: most bytes held at any moment; None = no limit.
        policy: a name in ``POLICIES``.
        counts: counts of the shard.
    """

    __slots__ = (
        "_chooser",
        "_rng",
        "_tagged",
        "_unswept",
        "births",
        "bytes",
        "counts",
        "entries",
        "horizon",
        "max_bytes",
        "max_entries",
        "policy",
        "ticks",
        "valid_until",
    )

    def __init__(
        self,
        *,
        max_entries: int,
        rng: Random,
        max_bytes: int | None = None,
        policy: str = "lru",
        counts: TierCounts | None = None,
    ) -> None:
        if max_entries < 1:
            raise ValueError(f"max_entries must be 1 or more, not {max_entries}")
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes must be None or 1 or more, not {max_bytes}")
        if policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, not {policy!r}")
        self.valid_until = -inf
        self.horizon = -inf
        self.entries: dict[str, Entry] = {}
        self.ticks = 0
        self.births = 0
        self.bytes = 0
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.policy = policy
        self.counts = TierCounts() if counts is None else counts
        self._rng = rng
        self._chooser = POLICIES[policy](self.entries, rng)
        self._tagged: dict[str, set[str]] = {}
        self._unswept: list[str] = []

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def hits(self) -> int:
        """Hits so far, those of the tiers before this one included; a flush may lose the hits of that very moment."""
        return self.ticks - self.births

    def insert(self, key: str, entry: Entry, now: float) -> bool:
        """Store ``entry`` in place of any other of ``key``, after evicting what the limits demand.

        Whether the entry may be inserted at all (P7) is the shard's decision, made before. Victims already expired at
        ``now`` count as ``EXPIRED``, others as ``SIZE``. Requires holding the shard's lock.

        Returns:
            False if the entry alone exceeds ``max_bytes``: it is not stored, and the one it should replace is removed.
        """
        replaced = self.entries.get(key)
        limited = replaced is not None or self.max_bytes is not None or len(self.entries) >= self.max_entries
        if limited and not self._make_room(key, entry, replaced, now):
            return False
        self.counts.inserts += 1
        self.births = entry.birth = self.births + 1
        self.ticks = stamp = self.ticks + 1
        entry = self._chooser.admit(entry, stamp, replaced)
        self.bytes += entry.size
        if entry.tags:
            for tag in entry.tags:
                self._tagged.setdefault(tag, set()).add(key)
        self.entries[key] = entry
        self._chooser.on_insert(key, entry)
        return True

    def insert_new(self, items: Sequence[tuple[str, int, Entry | None]]) -> bool:
        """Store the entries of a bulk read in one go, at a third of the cost, if none needs room or replaces another.

        Requires holding the shard's lock.

        Returns:
            False if one does, or the policy takes note of each: nothing was stored, use :meth:`insert`.
        """
        entries = self.entries
        if (
            self.max_bytes is not None
            or self._chooser.takes_note
            or len(entries) + len(items) > self.max_entries
            or not entries.keys().isdisjoint([item[0] for item in items])
        ):
            return False
        births, size, tagged = self.births, self.bytes, self._tagged
        for key, _, entry in items:
            if entry is not None:
                births += 1
                entry.birth = births
                self.ticks = entry.used = self.ticks + 1  # readers count here too
                size += entry.size
                if entry.tags:
                    for tag in entry.tags:
                        tagged.setdefault(tag, set()).add(key)
                entries[key] = entry
        self.counts.inserts += births - self.births
        self.births, self.bytes = births, size
        return True

    def _make_room(self, key: str, entry: Entry, replaced: Entry | None, now: float) -> bool:
        """Remove what stands in the way of ``entry``; False if it can never fit."""
        limit = inf if self.max_bytes is None else self.max_bytes
        if replaced is not None:
            if self.bytes - replaced.size + entry.size <= limit:  # replaced in place: readers see one or the other
                self._forget(key, replaced, RemovalCause.REPLACED)
            else:
                self.remove(key, RemovalCause.REPLACED)
        if entry.size > limit:
            self.counts.rejected_too_large += 1
            return False
        while self.bytes + entry.size > limit or (len(self.entries) >= self.max_entries and key not in self.entries):
            victim = self._chooser.victim()
            expired = self.entries[victim].is_expired(now)
            self.remove(victim, RemovalCause.EXPIRED if expired else RemovalCause.SIZE)
        return True

    def remove(self, key: str, cause: RemovalCause) -> bool:
        """Remove ``key`` and tell whether it was there. Requires holding the shard's lock."""
        entry = self.entries.pop(key, None)
        if entry is None:
            return False
        self._forget(key, entry, cause)
        self._chooser.on_remove()
        return True

    def evict_older(self, key: str, seq: int) -> bool:
        """Remove ``key`` if its version is below ``seq`` (P8: INVALIDATED). Requires holding the shard's lock."""
        entry = self.entries.get(key)
        return entry is not None and entry.seq < seq and self.remove(key, RemovalCause.INVALIDATED)

    def remove_tagged(self, tag: str, seq: int) -> int:
        """Remove the entries that carry ``tag`` and have a version below ``seq`` (P10: INVALIDATED).

        Returns how many went. Requires holding the shard's lock.
        """
        return sum(self.evict_older(key, seq) for key in tuple(self._tagged.get(tag, ())))

    def drop_above(self, seq: int) -> int:
        """Remove the entries with a version above ``seq``, which a resync has not proven (P6: UNPROVEN).

        Returns how many went. Looks at every entry. Requires holding the shard's lock.
        """
        above = [key for key, entry in self.entries.items() if entry.seq > seq]
        return sum(self.remove(key, RemovalCause.UNPROVEN) for key in above)

    def expire_some(self, now: float, limit: int) -> int:
        """Look at the next ``limit`` entries and remove those that have expired at ``now`` (EXPIRED).

        A round lists all keys once and takes as many calls as the limit demands; the call after its last one starts
        the next. So an expired entry goes within two rounds, and only the call that lists the keys takes time in
        proportion to their number (a few ns each). Returns how many went. Requires holding the shard's lock.
        """
        if not self._unswept:
            self._unswept = list(self.entries)
        start = max(len(self._unswept) - limit, 0)
        batch = self._unswept[start:]
        del self._unswept[start:]
        expired = [key for key in batch if (entry := self.entries.get(key)) is not None and entry.is_expired(now)]
        return sum(self.remove(key, RemovalCause.EXPIRED) for key in expired)

    def remove_all(self, cause: RemovalCause) -> int:
        """Remove every entry and return how many there were. Requires holding the shard's lock."""
        count = len(self.entries)
        self.counts.removed[cause] += count
        self.bytes = 0
        self._tagged.clear()
        self._unswept.clear()
        self.entries.clear()
        self._chooser.on_remove()
        return count

    def sibling(self) -> LocalTier:
        """Return an empty tier with the same limits, for other purposes: its policy is "lru", its counts its own."""
        return LocalTier(max_entries=self.max_entries, max_bytes=self.max_bytes, rng=self._rng)

    def replacement(self, cause: RemovalCause) -> LocalTier:
        """Return an empty tier to take the place of this one; count the entries held here under ``cause``.

        The new tier shares limits, policy and counts, goes on with ``ticks``, and serves nothing until the shard sets
        its ``valid_until``. This tier stays as it is, also its ``valid_until``: readers may be in the middle of a hit
        (P4). Do not change it any more. Requires holding the shard's lock.
        """
        self.counts.removed[cause] += len(self.entries)
        successor = LocalTier(max_entries=self.max_entries, rng=self._rng, policy=self.policy, counts=self.counts)
        successor.max_bytes = self.max_bytes
        successor.ticks, successor.births = self.ticks, self.births
        return successor

    def check_invariants(self) -> None:
        """Raise AssertionError with all that is wrong. For tests: no reader may run meanwhile."""
        if faults := [*self._faults(), *self._chooser.faults()]:
            raise AssertionError("; ".join(faults))

    def _forget(self, key: str, entry: Entry, cause: RemovalCause) -> None:
        """Take an entry that leaves out of the sums and the tag index, and count it."""
        self.bytes -= entry.size
        self.counts.removed[cause] += 1
        if entry.tags:
            for tag in set(entry.tags):
                keys = self._tagged[tag]
                keys.remove(key)
                if not keys:
                    del self._tagged[tag]

    def _faults(self) -> Iterator[str]:
        if len(self.entries) > self.max_entries:
            yield f"{len(self.entries)} entries exceed max_entries={self.max_entries}"
        if self.max_bytes is not None and self.bytes > self.max_bytes:
            yield f"{self.bytes} bytes exceed max_bytes={self.max_bytes}"
        if self.bytes != (total := sum(entry.size for entry in self.entries.values())):
            yield f"{self.bytes} bytes accounted, the entries have {total}"
        births = [entry.birth for entry in self.entries.values()]
        if len(set(births)) < len(births) or max(births, default=0) > self.births:
            yield f"births {births} repeat or exceed {self.births}"
        tagged: dict[str, set[str]] = {}
        for key, entry in self.entries.items():
            for tag in entry.tags:
                tagged.setdefault(tag, set()).add(key)
        if tagged != self._tagged:
            yield f"the tag index is {self._tagged}, the entries carry {tagged}"
