"""Finds what the contract forbids in what a soak has noted.

A *position* is (number of the history, seq). A history ends with a loss of data: nothing of it survives a FLUSHALL, an
empty restart or a lost clock; a fail-over lets live what is up to the fork. The same epoch and seq may thus stand for
two positions, which the server tells apart. A *line* is what a history consists of: what survived of the one before,
and its own writes. Positions of one line are ordered; a later history comes after all that an earlier one has lost.

What is checked, by name:

* ``unknown``      every value was written by somebody, for that key, and every version belongs to a known history
* ``version``      ... and has the version that the write returned (or that of a later touch)
* ``refused``      what was refused definitely is never seen
* ``stale``        a local read returns nothing older than what was acknowledged before its horizon: ``began`` less its
                   age bound, and less ``max_staleness`` in any case
* ``acknowledged`` a local read returns nothing older than an acknowledged write that had returned before it began
* ``own-write``    no read returns anything older than what its own process had acknowledged before it began
* ``backwards``    no read returns anything older than a read of the same process that had ended before it began
* ``redis``        what a read from Redis returned is what the line holds at the clock that came with it
* ``lost``         ... an absence needs a delete, a floor, an expiry or a loss that explains it
* ``order``        an operation's position is not before what was acknowledged before it began
* ``expired``      no value is seen after its time
* ``conflict``     a compare-and-set that won replaced exactly what it named, and one that lost had a reason to
* ``bound``        no write goes to a server that the process had left
* ``convergence``  in the end every local entry equals Redis

Excused is what a loss explains. An acknowledged write that a fail-over discarded need not be seen from the fail-over's
begin on by reads that return what survived it; it may not come back. What an old primary that lives on still answers is
excused for local reads proven before all subscribers were cut from it, and for reads from Redis until the process'
subscriber has found the new one. Writes of unknown outcome may have happened between their begin and the end of the
faults that they met.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from integration.coherence_workers import stamp_of
from integration.soak.records import (
    AMBIGUOUS,
    CONFLICT,
    KILL,
    LOCAL,
    NONE,
    OK,
    REDIS,
    REFUSED,
    SET,
    TOUCH,
    History,
    Loss,
    Read,
    Write,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

GRACE = 2.5  # seconds after a fault in which a command that it held up may still be executed
CLOCKS = 0.1  # seconds by which Redis' clock and ours may differ over one value's life
START: tuple[int, float] = (-1, 0)

Position = tuple[int, float]


class Violation(NamedTuple):
    """One thing that is forbidden: which rule, and what happened."""

    rule: str
    text: str

    def __str__(self) -> str:
        return f"[{self.rule}] {self.text}"


@dataclass
class Findings:
    """What a check brought.

    Attributes:
        violations: what is forbidden.
        staleness: per local read of something outdated: seconds since it was, and seconds that were allowed.
        excused: how often which excuse was needed.
        checked: how much was checked, by kind.
    """

    violations: list[Violation] = field(default_factory=list)
    staleness: list[tuple[float, float]] = field(default_factory=list)
    excused: Counter[str] = field(default_factory=Counter)
    checked: Counter[str] = field(default_factory=Counter)


class Effect(NamedTuple):
    """What one write did to one key."""

    position: Position
    kind: str
    stamp: str | None
    write: Write


def check(history: History) -> Findings:
    """Check a history."""
    findings = Findings()
    world = _World(history, findings)
    world.run()
    return findings


class _World:
    """What is common to all keys: histories, losses, processes."""

    def __init__(self, history: History, findings: Findings) -> None:
        self.history = history
        self.findings = findings
        self.losses = history.losses
        self._of_epoch: dict[str, list[int]] = defaultdict(list)
        for number, epoch in enumerate(history.epochs):
            self._of_epoch[epoch].append(number)
        # When did a process' subscriber find a server?
        self._connected: dict[str, list[tuple[float, str]]] = {
            name: [(moment, fields["server"]) for moment, event, fields in process.events
                   if event == "subscriber_connected"]
            for name, process in history.processes.items()
        }  # fmt: skip
        self._windows = [(fault.began, fault.ended) for fault in history.faults]
        self._fork_losses = [number for number, loss in enumerate(self.losses) if loss.fork is not None]

    def run(self) -> None:
        history, found = self.history, self.findings
        writes_of: dict[str, list[Write]] = defaultdict(list)
        reads_of: dict[str, list[Read]] = defaultdict(list)
        for write in history.writes:
            found.checked[f"writes {write.outcome}"] += 1
            found.checked["acknowledged writes"] += write.acknowledged
            for key in write.keys:
                writes_of[key].append(write)
        for read in history.reads:
            found.checked[f"reads {read.tier}"] += 1
            reads_of[read.key].append(read)
        stamps = {
            stamp: (write, key)
            for write in history.writes
            if write.kind == SET
            for key, stamp in zip(write.keys, write.stamps, strict=True)
        }
        for key in sorted({*writes_of, *reads_of}):
            _Key(self, key, writes_of[key], reads_of[key], stamps).check()
        self._order()
        self._bound()
        self._convergence()

    def report(self, rule: str, text: str) -> None:
        self.findings.violations.append(Violation(rule, text))

    # -- positions -----------------------------------------------------------------------------------------------------

    def number(self, epoch: str, server: str | None, moment: float) -> int | None:
        """Return the number of the history that a version belongs to; None if it is of none."""
        if not epoch:  # there was no clock: between two histories
            return max((number + 1 for number, loss in enumerate(self.losses) if loss.began <= moment), default=0)
        numbers = self._of_epoch.get(epoch, [])
        if len(numbers) <= 1:
            return numbers[0] if numbers else None
        of_server = [number for number in numbers if server in self.history.servers[number]]
        return of_server[-1] if of_server else None

    def position(self, epoch: str, seq: float, server: str | None, moment: float) -> Position | None:
        number = self.number(epoch, server, moment)
        return None if number is None else (number, seq)

    def origin(self, position: Position) -> Position:
        """Return where a version was made: a server that was promoted still has those from before the fork."""
        number, seq = position
        while number and (fork := self.losses[number - 1].fork) is not None and seq <= fork:
            number -= 1
        return number, seq

    def survives(self, position: Position, number: int) -> bool:
        """Tell whether what has a position is part of a later history."""
        for at in range(position[0], number):
            fork = self.losses[at].fork
            if fork is None or (at == position[0] and position[1] > fork):
                return False
        return True

    def until(self, write: Write) -> float:
        """Return the moment until which a write may have happened."""
        ended = write.began + 1.0 if write.ended is None else write.ended
        if write.outcome == OK:
            return ended
        late = [end + GRACE for began, end in self._windows if began <= ended + 0.5 and end >= write.began]
        return max([ended, *late])

    # -- excuses -------------------------------------------------------------------------------------------------------

    def excuse(self, wanted: Position, seen: Position, read: Read, *, allowed: float, own: bool) -> str | None:
        """Say why a read may return ``seen`` though ``wanted`` is newer and was acknowledged; None if it may not.

        Args:
            wanted: position of what should have been seen.
            seen: position of what was seen.
            read: the read.
            allowed: seconds of staleness that the read may have.
            own: whether the process itself had written or seen ``wanted``.
        """
        number, seq = wanted
        if number < len(self.losses):
            loss = self.losses[number]
            if (
                loss.fork is not None
                and seq > loss.fork
                and (seen[0] < number or seen[1] <= loss.fork)
                and read.ended >= loss.began
            ):
                return "discarded by a fail-over"
        if own:
            return None
        for at in self._fork_losses:
            if (
                seen[0] <= at < number
                and self.survives(seen, at)
                and self._at_old_primary(read, self.losses[at], allowed)
            ):
                return "answered by an old primary"
        return None

    def _at_old_primary(self, read: Read, loss: Loss, allowed: float) -> bool:
        if read.server != loss.old_server:
            return False
        if read.tier == LOCAL:
            return read.began - allowed <= loss.ended
        return read.began <= self.left(read.process, loss)

    def left(self, process: str, loss: Loss) -> float:
        """Return when a process' subscriber had found another server after a fail-over."""
        return min(
            (moment for moment, server in self._connected.get(process, ())
             if moment >= loss.began and server != loss.old_server),
            default=inf,
        )  # fmt: skip

    # -- checks over all keys ------------------------------------------------------------------------------------------

    def _order(self) -> None:
        """An operation that began after another had ended comes after it (one order for the whole shard)."""
        known: list[tuple[float, float, Position, Write | Read]] = []
        for write in self.history.writes:
            if write.outcome in (OK, NONE, CONFLICT) and write.ended is not None:
                position = self.position(write.epoch, write.seq, write.server, write.ended)
                if position is None:
                    self.report("unknown", f"a version of a history that nobody knows: {write}")
                else:
                    known.append((write.began, write.ended, position, write))
        taken: dict[Position, Write] = {}
        for _, _, position, each in known:
            if isinstance(each, Write) and each.outcome == OK:
                if position in taken:
                    self.report("order", f"two writes have one version:\n    {taken[position]}\n    {each}")
                taken[position] = each
        for read in self.history.reads:
            if read.tier == REDIS:
                position = self.position(read.clock_epoch, read.clock_seq, read.server, read.ended)
                if position is None:
                    self.report("unknown", f"a clock of a history that nobody knows: {read}")
                else:
                    known.append((read.began, read.ended, position, read))
        ends: list[tuple[float, Position]] = [(ended, position) for _, ended, position, _ in known]
        ends += [(loss.ended, (number + 1, 0)) for number, loss in enumerate(self.losses)]
        newest = _Newest(ends)
        own_ends: dict[str, list[tuple[float, Position]]] = defaultdict(list)
        for _, ended, position, each in known:
            own_ends[each.process].append((ended, position))
        own_newest = {process: _Newest(positions) for process, positions in own_ends.items()}
        for began, _, position, each in known:
            wanted = own_newest[each.process].before(began)
            if position < wanted:
                # Whoever has met a new primary does not go back to the old one.
                self.report("order", f"position {position} after its own process was at {wanted}: {each}")
                continue
            wanted = newest.before(began)
            if position >= wanted:
                continue
            excused = False
            for at in self._fork_losses:
                loss = self.losses[at]
                if (
                    position[0] == at < wanted[0]
                    and each.server == loss.old_server
                    and began <= self.left(each.process, loss)
                ):
                    excused = True
            if excused:
                self.findings.excused["order: answered by an old primary"] += 1
            else:
                self.report("order", f"position {position} after {wanted} was acknowledged: {each}")

    def _bound(self) -> None:
        for write in self.history.writes:
            for at in self._fork_losses:
                loss = self.losses[at]
                if (
                    write.outcome == OK
                    and write.server == loss.old_server
                    and write.began > max(self.left(write.process, loss), loss.ended)
                ):
                    self.report("bound", f"written to a server that the process had left: {write}")

    def _convergence(self) -> None:
        for process, held in self.history.held.items():
            for key, entry in held.items():
                self.findings.checked["entries in the end"] += 1
                remote = self.history.remote.get(key)
                if entry != remote:
                    self.report("convergence", f"{process} holds {key} as {entry}, Redis as {remote}")


class _Newest:
    """Tells the newest position that was reached by a given moment."""

    def __init__(self, ends: Iterable[tuple[float, Position]]) -> None:
        self._ends = sorted(ends)
        self._moments = [moment for moment, _ in self._ends]
        self._newest = list(accumulate((position for _, position in self._ends), max))

    def before(self, moment: float) -> Position:
        count = bisect_left(self._moments, moment)
        return self._newest[count - 1] if count else START

    def all_before(self, moment: float, above: Position) -> list[tuple[float, Position]]:
        """Return all that ended before a moment and is above a position, oldest first."""
        count = bisect_left(self._moments, moment)
        return [each for each in self._ends[:count] if each[1] > above]


class _Demands:
    """What reads of a key have to see. ``changes``: without touches, for reads that do not tell their version."""

    def __init__(self, effects: list[Effect], losses: list[tuple[float, Position]]) -> None:
        acknowledged = [each for each in effects if each.write.outcome == OK and each.write.ended is not None]
        self.versions = _Newest([*_ends(acknowledged), *losses])
        self.changes = _Newest([*_ends([each for each in acknowledged if each.kind != TOUCH]), *losses])


def _ends(effects: list[Effect]) -> list[tuple[float, Position]]:
    return [(each.write.ended or inf, each.position) for each in effects]


class _Key:
    """The history of one key."""

    def __init__(
        self, world: _World, key: str, writes: list[Write], reads: list[Read], stamps: dict[str, tuple[Write, str]]
    ) -> None:
        self._world = world
        self._key = key
        self._reads = reads
        self._stamps = stamps
        self._doubtful = [write for write in writes if write.outcome == AMBIGUOUS]
        self._conditional = [write for write in writes if write.condition is not None]
        self._effects = sorted(
            (effect for write in writes if write.outcome == OK and (effect := self._effect(write)) is not None),
            key=lambda effect: effect.position,
        )
        self._resolve()
        self._by_position = {effect.position: effect for effect in self._effects}
        self._position_of = {effect.stamp: effect.position for effect in self._effects if effect.stamp is not None}
        self._lines = self._make_lines()
        # A loss is acknowledged like a write.
        self._losses = [(loss.ended, (number + 1, 0.0)) for number, loss in enumerate(world.losses)]
        self._demands = _Demands(self._effects, self._losses)
        self._acknowledged = _Newest(_ends([effect for effect in self._effects if effect.write.acknowledged]))
        self._own = {
            process: _Demands([effect for effect in self._effects if effect.write.process == process], [])
            for process in {write.process for write in writes}
        }

    def check(self) -> None:
        known: list[tuple[Read, Position | None, Position | None]] = []  # position of the version, and of the value
        for read in self._reads:
            if read.stamp is None:
                clock = self._world.position(read.clock_epoch, read.clock_seq, read.server, read.ended)
                if clock is None:
                    continue  # reported with the order
                self._check_absence(read, clock)
                known.append((read, (clock[0], clock[1] + 0.5), (clock[0], clock[1] + 0.5)))
                continue
            version, value = self._check_value(read)
            if value is None:
                continue
            self._check_age(read, version, value)
            if read.tier == LOCAL:
                self._check_acknowledged(read, version or value)
            if read.tier == REDIS:
                self._check_redis(read, value)
            known.append((read, version, value))
        by_process: dict[str, list[tuple[Read, Position | None, Position | None]]] = defaultdict(list)
        for each in known:
            by_process[each[0].process].append(each)
        for process, own in by_process.items():
            self._check_process(process, own)
        for write in self._conditional:
            self._check_condition(write)

    # -- preparation ---------------------------------------------------------------------------------------------------

    def _effect(self, write: Write) -> Effect | None:
        position = self._world.position(write.epoch, write.seq, write.server, write.ended or 0)
        if position is None:
            return None  # reported with the order
        stamp = write.stamps[write.keys.index(self._key)] if write.kind == SET else None
        return Effect(position, write.kind, stamp, write)

    def _resolve(self) -> None:
        """Find the versions of writes of unknown outcome by who has seen them."""
        lowest: dict[str, Position] = {}
        for read in self._reads:
            if read.stamp is None or not read.epoch:
                continue
            write, key = self._stamps.get(read.stamp, (None, ""))
            if write is None or key != self._key or write.outcome != AMBIGUOUS:
                continue
            position = self._world.position(read.epoch, read.seq, read.server, read.ended)
            if position is not None:
                position = self._world.origin(position)
                lowest[read.stamp] = min(position, lowest.get(read.stamp, position))
        for stamp, position in lowest.items():
            write = self._stamps[stamp][0]
            self._effects.append(Effect(position, SET, stamp, write))
        self._effects.sort(key=lambda effect: effect.position)
        self._doubtful = [
            write for write in self._doubtful
            if write.kind != SET or write.stamps[write.keys.index(self._key)] not in lowest
        ]  # fmt: skip

    def _make_lines(self) -> list[tuple[list[Position], list[Effect]]]:
        """Return for each history what it consists of, in order."""
        lines: list[tuple[list[Position], list[Effect]]] = []
        for number in range(len(self._world.losses) + 1):
            line = [effect for effect in lines[-1][1] if self._world.survives(effect.position, number)] if lines else []
            line += [effect for effect in self._effects if effect.position[0] == number]
            lines.append(([effect.position for effect in line], line))
        return lines

    def _at(self, position: Position) -> Effect | None:
        """Return the last effect up to a position on its line."""
        positions, line = self._lines[position[0]]
        count = bisect_right(positions, position)
        return line[count - 1] if count else None

    def _doubt(self, kinds: tuple[str, ...], since: float, to: float, *, dying: bool = False) -> bool:
        """Tell whether a write of unknown outcome may have happened between two moments."""
        return any(
            write.kind in kinds
            and (not dying or write.kind == KILL or (write.ttl or inf) < to - write.began + CLOCKS)
            and write.began <= to
            and self._world.until(write) >= since
            for write in self._doubtful
        )

    # -- one read ------------------------------------------------------------------------------------------------------

    def _check_value(self, read: Read) -> tuple[Position | None, Position | None]:
        """Check that somebody wrote a value; return the positions of its version, if known, and of its write."""
        report, world = self._world.report, self._world
        stamp = read.stamp or ""
        write, key = self._stamps.get(stamp, (None, ""))
        if write is None or key != self._key:
            report("unknown", f"nobody wrote this value for {self._key}: {read}")
            return None, None
        if write.outcome in (REFUSED, CONFLICT):
            report("refused", f"{read} saw what was refused: {write}")
            return None, None
        value = self._position_of.get(stamp)
        if value is None:
            world.findings.checked["reads of a value of unknown version"] += 1
            return None, None
        if not read.epoch:
            return None, value
        # A version up to a fork belongs to the history in which it was made; one above it to the server that gave it.
        version: Position | None = None
        for number in reversed(range(value[0], len(self._lines))):
            if world.history.epochs[number] == read.epoch and world.survives(value, number):
                candidate = (number, read.seq)
                if candidate in self._by_position:
                    version = candidate
                    if candidate == value or read.server in world.history.servers[number]:
                        break
        if version is None:
            # Made by a touch of unknown outcome?
            number = world.number(read.epoch, read.server, read.ended)
            if number is not None and (number, read.seq) > value and self._doubt((TOUCH,), 0, read.ended):
                after = self._at((number, read.seq))
                if after is not None and after.stamp in (stamp, None) and after.kind != KILL:
                    return (number, read.seq), value
            report("version", f"{read} has not the version of {write}")
            return None, None
        if version != value and not self._touched(value, version):
            report("version", f"{read} has the version of another write than {write}")
            return None, None
        self._check_expiry(read, self._by_position[version].write)
        return version, value

    def _touched(self, value: Position, version: Position) -> bool:
        """Tell whether nothing but touches lies between a value and a version of it."""
        positions, line = self._lines[version[0]]
        first, last = bisect_right(positions, value), bisect_right(positions, version)
        return first < last and all(effect.kind == TOUCH for effect in line[first:last])

    def _check_expiry(self, read: Read, write: Write) -> None:
        if write.ttl is not None and write.ended is not None and write.outcome == OK:
            late = read.began - write.ended - write.ttl
            if late > CLOCKS:
                self._world.report("expired", f"{late:.3f} s after its time: {read} of {write}")

    def _check_age(self, read: Read, version: Position | None, value: Position) -> None:
        world = self._world
        allowed = 0.0
        if read.tier == LOCAL:
            allowed = min(world.history.max_staleness, inf if read.age is None else read.age)
        demands, seen = (self._demands.changes, value) if version is None else (self._demands.versions, version)
        if demands.before(read.began - allowed) > seen:
            for ended, wanted in demands.all_before(read.began - allowed, seen):
                if self._outlives(seen, wanted):
                    continue
                excuse = world.excuse(wanted, seen, read, allowed=allowed, own=False)
                if excuse is None:
                    rule = "stale" if read.tier == LOCAL else "redis"
                    world.report(
                        rule,
                        f"{self._key}: {seen} though {wanted} was acknowledged {read.began - ended:.3f} s before "
                        f"({allowed:.3f} allowed): {read}{self._about(wanted)}",
                    )
                    return
                world.findings.excused[excuse] += 1
        if read.tier == LOCAL and demands.before(read.began) > seen:
            outdated = [
                ended for ended, wanted in demands.all_before(read.began, seen)
                if not self._outlives(seen, wanted)
                and world.excuse(wanted, seen, read, allowed=allowed, own=False) is None
            ]  # fmt: skip
            if outdated:
                world.findings.staleness.append((read.began - min(outdated), allowed))

    def _check_acknowledged(self, read: Read, seen: Position) -> None:
        """Check P12: no allowance for age. (A touch changes no value, and is not acknowledged.)"""
        world = self._world
        if self._acknowledged.before(read.began) <= seen:
            return
        for _, wanted in self._acknowledged.all_before(read.began, seen):
            excuse = world.excuse(wanted, seen, read, allowed=world.history.max_staleness, own=False)
            if excuse is None:
                what = f"{seen} after the acknowledged write {wanted} had returned"
                world.report("acknowledged", f"{self._key}: {what}: {read}{self._about(wanted)}")
                return
            world.findings.excused[excuse] += 1

    def _outlives(self, seen: Position, wanted: Position) -> bool:
        """Tell whether ``wanted`` is only a loss that ``seen`` has survived."""
        return wanted[1] == 0 and self._world.survives(seen, wanted[0])

    def _check_redis(self, read: Read, value: Position) -> None:
        """Compare what Redis answered with what the line holds at the clock of the answer."""
        clock = self._world.position(read.clock_epoch, read.clock_seq, read.server, read.ended)
        if clock is None:
            return  # reported with the order
        if value > clock or not self._world.survives(value, clock[0]):
            self._world.report("redis", f"{value} is not part of {clock}: {read}{self._about(value)}")
            return
        last = self._at(clock)
        if last is not None and last.position > value and not self._touched(value, last.position):
            self._world.report("redis", f"{value} though {last.position} is there at {clock}: {read}\n    {last.write}")

    def _check_absence(self, read: Read, clock: Position) -> None:
        last = self._at(clock)
        if last is None or last.kind == KILL or self._may_be_gone(last, read.ended):
            return
        self._world.report(
            "lost",
            f"{self._key} absent at {clock} though nothing can have removed {last.position}: {read}\n    {last.write}",
        )

    def _may_be_gone(self, effect: Effect, moment: float) -> bool:
        """Tell whether a value may have expired or been deleted by a write of unknown outcome."""
        write = effect.write
        if write.ttl is not None and moment >= write.began + write.ttl - CLOCKS:
            return True
        return self._doubt((KILL, SET, TOUCH), write.began, moment, dying=True)

    # -- the reads of one process --------------------------------------------------------------------------------------

    def _check_process(self, process: str, known: list[tuple[Read, Position | None, Position | None]]) -> None:
        own = self._own.get(process)
        versions = _Newest([(read.ended, version or value or START) for read, version, value in known])
        values = _Newest([(read.ended, value or START) for read, _, value in known])
        for read, version, value in known:
            assert value is not None
            seen_before = values if version is None else versions
            seen = value if version is None else version
            self._compare(read, seen, seen_before, "backwards", "its process had returned")
            if own is not None:
                wanted = own.changes if version is None else own.versions
                self._compare(read, seen, wanted, "own-write", "its process had acknowledged")

    def _compare(self, read: Read, seen: Position, newest: _Newest, rule: str, what: str) -> None:
        if newest.before(read.began) <= seen:
            return
        for _, wanted in newest.all_before(read.began, seen):
            excuse = self._world.excuse(wanted, seen, read, allowed=0, own=True)
            if excuse is None:
                self._world.report(rule, f"{self._key}: {seen} after {what} {wanted}: {read}{self._about(wanted)}")
                return
            self._world.findings.excused[excuse] += 1

    # -- compare-and-set -----------------------------------------------------------------------------------------------

    def _check_condition(self, write: Write) -> None:
        assert write.condition is not None
        if write.outcome not in (OK, CONFLICT) or write.ended is None:
            return
        report, world = self._world.report, self._world
        epoch, seq = write.condition
        at = world.position(write.epoch, write.seq, write.server, write.ended)
        if at is None:
            return  # reported with the order
        world.findings.checked[f"compare-and-set {'won' if write.outcome == OK else 'lost'}"] += 1
        last = self._at((at[0], at[1] - 1 if write.outcome == OK else at[1]))
        current = last.position[1] if last is not None and last.kind != KILL else 0
        same = epoch in ("", write.epoch)
        if write.outcome == OK:
            if not same:
                report("conflict", f"won over a version of another history: {write}")
            elif current != seq:
                found = "" if last is None else f"\n    {last.write}"
                if seq and (current > seq or not self._doubt((SET, TOUCH), 0, write.ended)):
                    report("conflict", f"won over version {current} while it required {seq}: {write}{found}")
                elif not seq and last is not None and not self._may_be_gone(last, write.ended):
                    report("conflict", f"won over version {current} while it required an absence: {write}{found}")
        elif same and current == seq:
            if seq == 0:
                if not self._doubt((SET, TOUCH), 0, write.ended):
                    report("conflict", f"lost though the key was absent: {write}")
            elif (
                last is not None
                and not self._may_be_gone(last, write.ended)
                and not self._doubt((SET, TOUCH), last.write.began, write.ended)
            ):
                report("conflict", f"lost though the version was there: {write}")

    def _about(self, position: Position) -> str:
        effect = self._by_position.get(position)
        if effect is not None:
            return f"\n    {effect.write}"
        return f"\n    {self._world.losses[position[0] - 1]}" if position[1] == 0 and position[0] > 0 else ""


def stamp_or_none(value: Any) -> str | None:
    """Return the stamp of a value, None for none."""
    return None if value is None else stamp_of(value)
