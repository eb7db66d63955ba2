"""What processes did and saw, as records, and the checker that finds what the contract forbids in them.

Times are seconds of CLOCK_MONOTONIC, which all processes of a machine share. The rules (see the protocol's contract):

* A read from Redis returns nothing older than what was acknowledged, to anybody, before it began.
* A local read returns nothing older than what was acknowledged before it began, less its age bound (or less
  ``max_staleness``, if it did not tell its age).
* No read at all returns anything older than an acknowledged write (``wait=``) that had returned before it began.
* Read-your-writes: no read returns anything older than what its own process had acknowledged before.
* Never backwards: no read returns anything older than a read that had ended before in the same process; an absence
  counts as newer than all that was seen before it.
* Nothing is lost: an absence needs a delete, a tag invalidation or a clear that may have come after the last value.
"""

from __future__ import annotations

import heapq
import json
from bisect import bisect_left, bisect_right
from collections import defaultdict
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

SET, TOUCH, KILL = "set", "touch", "kill"


class Write(NamedTuple):
    """One key of one write.

    Attributes:
        process: who wrote: a number or a name.
        key: the key.
        kind: ``set``; ``touch`` (a new version of the same value); ``kill`` (deleted, or below a floor).
        seq: its version; None if the outcome is unknown.
        stamp: what names the value, if it is a set.
        began: before the call.
        ended: after it returned; None if it did not.
        settled: whether it returned only when nobody could serve an older value.
    """

    process: int | str
    key: str
    kind: str
    seq: int | None
    stamp: str | None
    began: float
    ended: float | None
    settled: bool = False


class Read(NamedTuple):
    """One key of one read.

    Attributes:
        process: who read.
        key: the key.
        found: whether there was a value.
        seq: its version, if the read told; else None.
        stamp: what names the value that was found, if ``seq`` is None.
        tier: ``local`` or ``redis``; None if the read did not tell.
        age: age bound in seconds; None if the read did not tell.
        began: before the call.
        ended: after it returned.
    """

    process: int | str
    key: str
    found: bool
    seq: int | None
    stamp: str | None
    tier: str | None
    age: float | None
    began: float
    ended: float


def dump(path: Path, writes: Iterable[Write], reads: Iterable[Read]) -> None:
    """Write records as JSON lines."""
    with path.open("w") as file:
        for letter, records in (("w", writes), ("r", reads)):
            for record in records:
                file.write(json.dumps([letter, *record]) + "\n")


def load(paths: Iterable[Path]) -> tuple[list[Write], list[Read]]:
    """Read what ``dump`` wrote."""
    writes: list[Write] = []
    reads: list[Read] = []
    for path in paths:
        with path.open() as file:
            for line in file:
                letter, *fields = json.loads(line)
                if letter == "w":
                    writes.append(Write(*fields))
                else:
                    reads.append(Read(*fields))
    return writes, reads


def violations(writes: Iterable[Write], reads: Iterable[Read], *, max_staleness: float) -> list[str]:
    """Return what is forbidden in a history, one line each; empty if nothing is."""
    writes_of: dict[str, list[Write]] = defaultdict(list)
    reads_of: dict[str, list[Read]] = defaultdict(list)
    for write in writes:
        writes_of[write.key].append(write)
    for read in reads:
        reads_of[read.key].append(read)
    return [
        f"key {key}: {fault}"
        for key, key_reads in reads_of.items()
        for fault in _Key(writes_of[key], max_staleness).faults(key_reads)
    ]


class _Key:
    """The history of one key."""

    def __init__(self, writes: list[Write], max_staleness: float) -> None:
        self._max_staleness = max_staleness
        self._acknowledged = _newest(writes)
        self._settled = _newest([write for write in writes if write.settled])
        self._own = {
            process: _newest([write for write in writes if write.process == process])
            for process in {write.process for write in writes}
        }
        self._lives = sorted(write.seq for write in writes if write.kind != KILL and write.seq is not None)
        kills = [write for write in writes if write.kind == KILL]
        self._kills = sorted((write.seq, write.began) for write in kills if write.seq is not None)
        # From each kill on, the earliest moment at which it or a later one may have happened.
        earliest = list(accumulate((began for _, began in reversed(self._kills)), min))
        self._earliest_kill = earliest[::-1]
        self._doubtful_kill = min((write.began for write in kills if write.seq is None), default=float("inf"))
        # A value keeps its stamp through touches: the versions that a read of it may have seen.
        self._spans: dict[str, tuple[int, int]] = {}
        stamp: str | None = None
        for write in sorted((write for write in writes if write.seq is not None), key=lambda write: write.seq or 0):
            seq = write.seq or 0
            stamp = {SET: write.stamp, TOUCH: stamp, KILL: None}[write.kind]
            if stamp is not None:
                self._spans[stamp] = (self._spans.get(stamp, (seq, seq))[0], seq)

    def faults(self, reads: list[Read]) -> Iterator[str]:
        for process in sorted({read.process for read in reads}):
            yield from self._of_process([read for read in reads if read.process == process])

    def _of_process(self, reads: list[Read]) -> Iterator[str]:
        """Go through the reads of one process in the order in which they began."""
        seen = 0.0  # version of the newest result that was returned before; and a half if it was an absence
        under_way: list[tuple[float, float]] = []  # end and version of reads that may overlap with the next one
        for read in sorted(reads, key=lambda read: read.began):
            while under_way and under_way[0][0] <= read.began:
                seen = max(seen, heapq.heappop(under_way)[1])
            own = self._own.get(read.process, lambda _: 0)(read.began)
            if not read.found:
                yield from self._absence(read)
                heapq.heappush(under_way, (read.ended, int(seen) + 0.5))
                continue
            span = (read.seq, read.seq) if read.seq is not None else self._spans.get(read.stamp or "")
            if span is None:  # of a write whose outcome is unknown
                continue
            lowest, highest = span
            assert lowest is not None
            assert highest is not None
            allowed = self._max_staleness
            if read.tier == "redis":
                allowed = 0.0
            elif read.age is not None:
                allowed = min(allowed, read.age)
            for what, needed in (
                (f"what was acknowledged {allowed:.3f} s before", self._acknowledged(read.began - allowed)),
                ("what nobody could be older than", self._settled(read.began)),
                ("its own process' write", own),
                ("what its process had returned", seen),
            ):
                if highest < needed:
                    yield f"version {highest} is older than {what} ({needed}): {read}"
            heapq.heappush(under_way, (read.ended, float(lowest)))

    def _absence(self, read: Read) -> Iterator[str]:
        newest = self._acknowledged(read.began)
        at = bisect_left(self._lives, newest)
        if at == len(self._lives) or self._lives[at] != newest:
            return  # nothing was acknowledged, or a kill
        later = bisect_right(self._kills, (newest, float("inf")))
        earliest = self._earliest_kill[later] if later < len(self._kills) else float("inf")
        if min(earliest, self._doubtful_kill) > read.ended:
            yield f"absent, though version {newest} was acknowledged and nothing can have removed it: {read}"


def _newest(writes: list[Write]) -> Callable[[float], int]:
    """Return a function that tells the newest version that was acknowledged by a given moment, 0 if none was."""
    acknowledged = sorted((write.ended, write.seq) for write in writes if write.ended is not None and write.seq)
    moments = [ended for ended, _ in acknowledged]
    newest = list(accumulate((seq for _, seq in acknowledged), max))

    def at(moment: float) -> int:
        count = bisect_right(moments, moment)
        return newest[count - 1] if count else 0

    return at
