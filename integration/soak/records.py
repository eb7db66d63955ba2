"""What workers and the injector note, as JSON lines, and how it is read back.

Times are seconds of CLOCK_MONOTONIC, which all processes of a machine share. A worker's file has one line per

* ``w``  a write that begins: written through before the call, so that it survives a SIGKILL;
* ``d``  how that write ended;
* ``r``  one key of one read;
* ``f``  a read that failed;
* ``e``  an event of the cache;
* ``s``  a sample of its counters, several times a second.

The injector's file has a ``fault`` line per fault, a ``loss`` line per loss of data, a ``server`` line per server
process that clients can reach and a ``history`` line per epoch that began.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SET, TOUCH, KILL = "set", "touch", "kill"
OK, NONE, CONFLICT, REFUSED, AMBIGUOUS, UNAVAILABLE = "ok", "none", "conflict", "refused", "ambiguous", "unavailable"
LOCAL, REDIS = "local", "redis"

clock = time.monotonic


def short(epoch: bytes | None) -> str:
    """Return an epoch as it is noted."""
    return (epoch or b"").hex()[:12]


@dataclass(slots=True)
class Write:
    """One write.

    Attributes:
        process: instance id of who wrote.
        operation: what was called.
        kind: ``set``; ``touch`` (a new version of the same value); ``kill`` (deleted, or below a floor).
        keys: the keys concerned.
        stamps: names of the values, in the order of the keys; empty if it is no set.
        ttl: seconds to live.
        began: before the call.
        ended: after it; None if the process did not live to see it.
        outcome: ``ok``; ``none`` (there was nothing to touch); ``conflict``; ``refused`` (definitely not done);
            ``ambiguous``.
        epoch, seq: its version if ``ok``; the clock as it was if ``none`` or ``conflict``; else empty and 0.
        server: run id of the server that answered.
        condition: for a compare-and-set the version that was required, as (epoch, seq); seq 0 for an absence.
        acknowledged: whether it returned as an acknowledged write: nobody may serve anything older from then on.
    """

    process: str
    operation: str
    kind: str
    keys: list[str]
    stamps: list[str]
    ttl: float | None
    began: float
    ended: float | None = None
    outcome: str = AMBIGUOUS
    epoch: str = ""
    seq: int = 0
    server: str | None = None
    condition: tuple[str, int] | None = None
    acknowledged: bool = False


class Read(NamedTuple):
    """One key of one read.

    Attributes:
        process: instance id of who read.
        operation: what was called.
        key: the key.
        stamp: name of the value; None if there was none.
        epoch, seq: its version; empty and 0 if the call does not tell.
        tier: ``local`` or ``redis``.
        age: age bound in seconds; None if the call does not tell.
        server: run id of the server that answered, or for a local read of the one that the stream comes from.
        clock_epoch, clock_seq: the clock that came with Redis' answer.
        began: before the call.
        ended: after it.
    """

    process: str
    operation: str
    key: str
    stamp: str | None
    epoch: str
    seq: int
    tier: str
    age: float | None
    server: str | None
    clock_epoch: str
    clock_seq: int
    began: float
    ended: float


class Loss(NamedTuple):
    """A loss of data: the end of one history and the begin of the next.

    Attributes:
        cause: name of the fault.
        began: nothing was lost before.
        ended: everything concerned was lost, and no instance can be proven fresh by the old server any more.
        fork: None if everything was lost; after a fail-over the last seq that survived.
        old_server: run id of the server that had the data.
    """

    cause: str
    began: float
    ended: float
    fork: int | None = None
    old_server: str | None = None


class Fault(NamedTuple):
    """A fault that was injected.

    Attributes:
        name: its kind.
        began, ended: from before its begin to after its end.
        target: instance id, or empty for all or for Redis.
        effect: how many things it was done to; 0 if it came to nothing.
        note: details for people.
    """

    name: str
    began: float
    ended: float
    target: str
    effect: int
    note: str


@dataclass
class Process:
    """What one process noted besides reads and writes."""

    events: list[tuple[float, str, dict[str, Any]]] = field(default_factory=list)
    samples: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    failed_reads: int = 0


@dataclass
class History:
    """All that was noted in a run.

    Attributes:
        losses: losses of data; ``losses[n]`` ended the n-th history, counted from 0.
        epochs: epoch of each history.
        servers: run ids of the servers of each history.
        held: per process and key what the local tier held in the end, as [epoch, seq, value].
        remote: per key what Redis held in the end.
        began, quiet, ended: begin, end of the faults, end.
    """

    max_staleness: float
    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    processes: dict[str, Process] = field(default_factory=lambda: defaultdict(Process))
    losses: list[Loss] = field(default_factory=list)
    epochs: list[str] = field(default_factory=list)
    servers: list[set[str]] = field(default_factory=lambda: [set()])
    faults: list[Fault] = field(default_factory=list)
    held: dict[str, dict[str, Any]] = field(default_factory=dict)
    remote: dict[str, Any] = field(default_factory=dict)
    began: float = 0.0
    quiet: float = 0.0
    ended: float = 0.0


class Log:
    """A file of JSON lines that loses nothing when its process is killed. Any thread may write."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, *lines: list[Any]) -> None:
        os.write(self._descriptor, b"".join([json.dumps(line).encode() + b"\n" for line in lines]))

    def close(self) -> None:
        os.close(self._descriptor)


def read_worker(history: History, process: str, path: Path) -> None:
    """Add one worker's file to a history."""
    begun: dict[int, Write] = {}
    noted = history.processes[process]
    for letter, *fields in _lines(path):
        if letter == "w":
            begun[fields[0]] = write = Write(process, *fields[1:])
            history.writes.append(write)
        elif letter == "d":
            number, outcome, ended, epoch, seq, server, condition, acknowledged = fields
            write = begun[number]
            write.outcome, write.ended, write.epoch, write.seq, write.server = outcome, ended, epoch, seq, server
            write.condition = None if condition is None else (condition[0], condition[1])
            write.acknowledged = acknowledged
        elif letter == "r":
            history.reads.append(Read(process, *fields))
        elif letter == "f":
            noted.failed_reads += 1
        elif letter == "e":
            noted.events.append(tuple(fields))  # type: ignore[arg-type]
        else:
            noted.samples.append(tuple(fields))  # type: ignore[arg-type]


def read_injector(history: History, path: Path) -> None:
    """Add the injector's file to a history."""
    for what, *fields in _lines(path):
        if what == "fault":
            history.faults.append(Fault(*fields))
        elif what == "loss":
            history.losses.append(Loss(*fields))
            history.servers.append(set())
        elif what == "server":
            history.servers[-1].add(fields[0])
        elif what == "history":
            history.epochs.append(fields[0])


def _lines(path: Path) -> Iterable[list[Any]]:
    for line in path.read_bytes().split(b"\n")[:-1]:  # the last line may be half written
        yield json.loads(line)
