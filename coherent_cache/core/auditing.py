"""What an audit concludes: which entries that instances hold are outdated, and for how long they have been.

The order is everything. Instances say what they hold; *then* Redis is read; *then* the instances are asked again,
about what differed. An entry that is held after a delay, though Redis had something newer before that delay, has been
outdated for at least as long. Writes that come meanwhile can only make versions higher, so a fleet under load gives no
false alarm. What cannot be compared is set aside and counted: another epoch or server (P9, P16), an instance that does
not answer any more, an entry that would not be served anyway.

An absence in Redis proves nothing by itself: a value may have expired, or been evicted for lack of memory, without a
message. Whether there was one, the log tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from math import inf, log10
from typing import Any, Final

from coherent_cache.core.questions import HeldEntry, Holdings
from coherent_cache.core.stored import Presence, Snapshot, Stored
from coherent_cache.wire import Kind, Message

CONSISTENCY_AT: Final = (0.1, 1.0, 10.0)
"""Seconds after a write at which consistency is told, as Meta's Polaris does."""

CLOCK_MARGIN: Final = 0.11
"""Part by which the bound is waited for longer: instances' clocks may be slow, as for acknowledged writes (P12)."""

_WRITES: Final = frozenset({Kind.SET, Kind.DELETE, Kind.TOUCH, Kind.BATCH})


class Doubt(StrEnum):
    """Why an entry is looked at again."""

    OUTDATED = "outdated"  # Redis had a newer version, or a floor above it
    AHEAD = "ahead"  # Redis has never had this version, or has lost it
    GONE = "gone"  # Redis has no value: perhaps it was deleted, perhaps it has expired


@dataclass(frozen=True, slots=True)
class Suspect:
    """An entry that differs from what Redis has.

    Attributes:
        member: who holds it.
        key: user key.
        shard: number of the shard.
        seq: its version.
        doubt: see :class:`Doubt`.
        least: version below which an entry is outdated; for ``ahead`` and ``gone`` 0.
        epoch: the shard's history.
        server: run id of the server.
        clock: the shard's clock when Redis was read.
        bound: seconds that the member may serve without a proof of freshness.
    """

    member: str
    key: str
    shard: int
    seq: int
    doubt: Doubt
    least: int
    epoch: bytes
    server: str
    clock: int
    bound: float


@dataclass(frozen=True, slots=True)
class FirstLook:
    """What came of comparing what instances hold with what Redis has.

    Attributes:
        checked: entries that were compared.
        not_served: entries that are held by a shard that would not serve them now.
        undecided: entries that have no order with what Redis has.
        suspects: entries that differ.
    """

    checked: int
    not_served: int
    undecided: int
    suspects: tuple[Suspect, ...]


@dataclass(frozen=True, slots=True)
class Offender:
    """An entry that was still held, and would have been served, when it had been outdated for longer than the bound.

    Attributes:
        instance: the instance's id.
        member: its name among the members (P12).
        key: user key.
        shard: number of the shard.
        held: the version that it holds.
        least: the version below which an entry is outdated; 0 if Redis has no value of this version.
        doubt: see :class:`Doubt`.
        stale_for: seconds that it has been outdated, at least.
        recent: the instance's latest messages about the key, newest first.
    """

    instance: str
    member: str
    key: str
    shard: int
    held: int
    least: int
    doubt: str
    stale_for: float
    recent: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What an audit found.

    Attributes:
        namespace: the namespace.
        asked: instances that were asked.
        answered: instances that have answered.
        keys: different keys that were looked at.
        checked: entries that were compared, on all instances together.
        behind: entries that were behind at the first look: most of them for the time that a message takes.
        not_served: entries that were held by a shard that would not have served them.
        undecided: entries that could not be compared to the end: another history or server, an instance that did not
            answer again, or a log that does not reach back far enough.
        gone: entries of which Redis has no value, without a message: evicted there, expired, or deleted by another
            program.
        stale: per delay in seconds, entries that were outdated for at least that long.
        bound: seconds that were allowed, with a margin for clocks.
        beyond: entries that were outdated for longer than the bound.
        offenders: the first of these.
        seconds: how long the audit took.
    """

    namespace: str
    asked: int
    answered: int
    keys: int
    checked: int
    behind: int
    not_served: int
    undecided: int
    gone: int
    stale: Mapping[float, int]
    bound: float
    beyond: int
    offenders: tuple[Offender, ...]
    seconds: float

    @property
    def coherent(self) -> bool:
        """Whether nothing was outdated beyond the bound."""
        return self.beyond == 0

    def consistency(self, seconds: float) -> float | None:
        """Return the part of entries that were not outdated for longer than one of the delays; None of none."""
        return 1 - self.stale[seconds] / self.checked if self.checked else None

    def nines(self, seconds: float) -> float | None:
        """Return consistency in nines: 3.0 is 99.9 %; ``inf`` if nothing was outdated, None if nothing was checked."""
        if not self.checked:
            return None
        return -log10(self.stale[seconds] / self.checked) if self.stale[seconds] else inf

    def numbers(self) -> dict[str, float]:
        """Return what can be measured over time, by name, for metrics."""
        told: dict[str, float] = {
            "checked": self.checked, "behind": self.behind, "undecided": self.undecided, "gone": self.gone,
            "beyond_bound": self.beyond, "instances_asked": self.asked, "instances_answered": self.answered,
        }  # fmt: skip
        for delay, count in self.stale.items():
            told[f"stale_{delay:g}s"] = count
            told[f"consistency_{delay:g}s"] = 1.0 if not self.checked else 1 - count / self.checked
        return told

    def as_dict(self) -> dict[str, Any]:
        """Return everything as a dict of plain values."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return values | {
            "stale": {f"{delay:g}": count for delay, count in self.stale.items()},
            "consistency": {f"{delay:g}": self.consistency(delay) for delay in self.stale},
            "nines": {f"{delay:g}": self.nines(delay) for delay in self.stale},
            "offenders": [asdict(each) for each in self.offenders],
            "coherent": self.coherent,
        }


def compare(held: Mapping[str, Holdings], stored: Mapping[str, tuple[Snapshot, Stored]]) -> FirstLook:
    """Compare what instances hold with what Redis had after they had said so.

    Args:
        held: what each member holds.
        stored: per key, what Redis has, and the snapshot that it is of.
    """
    checked = not_served = undecided = 0
    suspects: list[Suspect] = []
    for member, holdings in held.items():
        for entry in holdings.entries:
            facts = holdings.shards[entry.shard]
            snapshot, there = stored[entry.key]
            if not facts.serves:
                not_served += 1
            elif (facts.epoch, facts.server) != (snapshot.epoch, snapshot.server):
                undecided += 1
            else:
                checked += 1
                doubt = _doubt(entry, there)
                if doubt is not None:
                    least = there.least if doubt is Doubt.OUTDATED else 0
                    suspects.append(
                        Suspect(
                            member, entry.key, entry.shard, entry.seq, doubt, least, facts.epoch, facts.server,
                            snapshot.seq, facts.bound,
                        )
                    )  # fmt: skip
    return FirstLook(checked, not_served, undecided, tuple(suspects))


def _doubt(entry: HeldEntry, there: Stored) -> Doubt | None:
    if entry.seq < there.least:
        return Doubt.OUTDATED
    if there.presence in {Presence.VALUE, Presence.NOTHING}:
        return None if entry.seq == there.seq else Doubt.AHEAD
    return Doubt.GONE


def judge_gone(suspect: Suspect, log: Sequence[Message]) -> Suspect | bool | None:
    """Find out whether a message says what became of a value that Redis has not.

    Args:
        suspect: a suspect that is ``gone``.
        log: messages, in any order.

    Returns:
        The suspect as an outdated one, if a message told of it; False if certainly none did; None if that cannot be
        known.
    """
    later = [message for message in log if suspect.seq < message.seq <= suspect.clock]
    told = [message.seq for message in later if message.kind in _WRITES and suspect.key in message.names]
    if told:
        return replace(suspect, doubt=Doubt.OUTDATED, least=max(told))
    # Which tags the entry carries is not known here.
    complete = len(later) == suspect.clock - suspect.seq
    return None if not complete or any(message.kind is Kind.TAG for message in later) else False


def look_again(suspects: Iterable[Suspect], held: Mapping[str, Sequence[Holdings]]) -> tuple[tuple[Suspect, ...], int]:
    """Return those suspects that are still held and would still be served, and how many cannot be decided any more.

    Args:
        suspects: those of the look before.
        held: what the members have answered now.
    """
    still: list[Suspect] = []
    undecided = 0
    for suspect in suspects:
        answers = held.get(suspect.member)
        facts = next((each.shards[suspect.shard] for each in answers or () if suspect.shard in each.shards), None)
        if facts is None:
            undecided += 1
        elif (facts.epoch, facts.server) == (suspect.epoch, suspect.server) and facts.serves:
            found = [entry.seq for each in answers or () for entry in each.entries if entry.key == suspect.key]
            if found and (found[0] < suspect.least or (not suspect.least and found[0] == suspect.seq)):
                still.append(suspect)
    return tuple(still), undecided
