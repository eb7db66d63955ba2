"""See a coherent fleet at work: several processes, one database, faults on purpose, and every read accounted for.

Starts worker processes that read rows of a small SQLite database through a cache, and change some. Meanwhile the
invalidation connection of one worker is cut and Redis is restarted, empty. It is checked that no read returned a row
that had been replaced more than a second before, and that no worker ever saw a row go back to an older version.

Without --url a private redis-server is started; a server given by --url is never restarted, and the demo uses a
namespace of its own there, which it removes. Exits with 1 if a read was too old or went backward.
"""

from __future__ import annotations

import argparse
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Final

from coherent_cache.cache import CoherentCache
from coherent_cache.cli.common import EXIT_OK, EXIT_PROBLEM, URL_VARIABLE, add_json, say_json
from coherent_cache.cli.demo_database import Database
from coherent_cache.cli.demo_fleet import Fleet, Member, WorkerLost
from coherent_cache.cli.demo_view import Silence, View, duration, hit_rate, make_view, outcome, several
from coherent_cache.cli.demo_worker import MAX_STALENESS, READS_PER_SECOND, Plan, Tally, shared_clock
from coherent_cache.errors import CacheUnavailable, CoherentCacheError, ConfigError
from coherent_cache.remote.embedded import KIND_FAKE, EmbeddedServer, embedded_server
from coherent_cache.remote.faults import cut_subscriber, embedded_outage, remove_namespace

EMBEDDED: Final = "embedded://"

CUT_AT: Final = 0.3
"""When the connection is cut, as a part of the whole time."""

RESTART_AT: Final = 0.5
"""When Redis is restarted, as a part of the whole time."""

AWAY_SECONDS: Final = 1.5 * MAX_STALENESS
"""Seconds until it comes back: long enough that no worker may serve its local tier any longer."""

AWAY_PART: Final = 0.1
"""Most that this may be, as a part of the whole time."""

READY_SECONDS: Final = 30.0
"""Seconds until all workers must be coherent."""

FRAME_SECONDS: Final = 0.2
"""Seconds between two pictures."""

SPARE_TTL: Final = 300.0
"""Seconds that rows outlive the demo in Redis: none may expire while it runs."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("--seconds", type=_number(float, 1, 86_400), default=20.0, help="how long (default 20)")
    add("--workers", type=_number(int, 1, 64), default=4, help="worker processes (default 4)")
    add("--keys", type=_number(int, 1, 1_000_000), default=500, help="rows of the database (default 500)")
    add("--seed", type=int, default=1, help="seed of the workers' choices (default 1)")
    add("--url", help=f"use this Redis (else {URL_VARIABLE}, else a private one is started)")
    add("--namespace", help="use this namespace, and leave it there (default: a new one, removed at the end)")
    add("--no-faults", action="store_true", help="cut nothing, restart nothing")
    add("--sabotage", action="store_true", help=argparse.SUPPRESS)  # one worker serves a frozen dict: must be noticed
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Run the demo; return 1 if a read was too old or went backward.

    Raises:
        ConfigError: an option is unusable.
        CacheUnavailable: there is no Redis.
        WorkerLost: a worker process ended early.
    """
    url = args.url or os.environ.get(URL_VARIABLE) or EMBEDDED
    if url.startswith("memory://"):
        raise ConfigError("url", "memory:// is inside one process and the workers are several; leave --url away")
    with ExitStack() as stack:
        server = None
        if url.startswith(EMBEDDED):
            name = f"demo-{secrets.token_hex(4)}"
            server = stack.enter_context(embedded_server(name))
            place = Place(server.url, f"{server.kind} {server.version}", name, server)
        else:
            place = Place(url, _probe(url), None, None)
        namespace = args.namespace or f"demo-{secrets.token_hex(4)}"
        if server is None and not args.namespace:
            stack.enter_context(_removed_at_the_end(url, namespace))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coherent-cache-demo-")))
        database = stack.enter_context(Database.create(folder / "items.db", args.keys))
        title = f"{several(args.workers, 'worker')}, {place.description}, {several(args.keys, 'row')} in SQLite"
        plans = [
            Plan(
                number=number, url=place.url, namespace=namespace, instance_id=f"{namespace}.worker-{number}",
                database=str(folder / "items.db"), items=args.keys, seed=args.seed, ttl=args.seconds + SPARE_TTL,
                sabotage=args.sabotage and number == 1,
            )
            for number in range(1, args.workers + 1)
        ]  # fmt: skip
        fleet = stack.enter_context(Fleet(plans, folder))
        view: View = Silence() if args.json else make_view(title, args.seconds)
        stack.callback(view.close)
        show = Show(fleet, view, args.seconds, place)
        show.get_ready()
        show.run(faults=not args.no_faults)
        report = show.report(database)
    good = not report["problems"]
    view.conclude(_summary(report), good=good)
    if args.json:
        say_json(report | {"namespace": namespace, "seed": args.seed})
    return EXIT_OK if good else EXIT_PROBLEM


@dataclass(frozen=True, slots=True)
class Place:
    """Where the demo's Redis is.

    Attributes:
        url: as redis-py takes it.
        description: for people.
        name: of the embedded server, None if it is somebody else's.
        server: the embedded server, or None.
    """

    url: str
    description: str
    name: str | None
    server: EmbeddedServer | None


@dataclass(slots=True)
class Fault:
    """Something that was done to the fleet.

    Attributes:
        kind: ``cut`` or ``restart``.
        at: seconds after the beginning.
        text: what was done.
        done: whether it could be done.
        workers: numbers of those concerned.
        recovered_in: by worker, seconds until its stream was proven again.
        outcomes: by worker, how: as in the event ``resynced``.
        away: seconds that Redis was away.
        note: what is said when it is over; empty for the text.
    """

    kind: str
    at: float
    text: str
    done: bool
    workers: tuple[int, ...]
    recovered_in: dict[int, float] = field(default_factory=dict)
    outcomes: dict[int, str] = field(default_factory=dict)
    away: float = 0.0
    note: str = ""


class Show:
    """The demo's course."""

    def __init__(self, fleet: Fleet, view: View, seconds: float, place: Place) -> None:
        """Combine the parts."""
        self._fleet = fleet
        self._view = view
        self._seconds = seconds
        self._place = place
        self._faults: list[Fault] = []
        self._began = shared_clock()
        self._took = seconds

    def get_ready(self) -> None:
        """Wait until every worker is coherent.

        Raises:
            WorkerLost: one is not in time.
        """
        members = self._fleet.members
        deadline = shared_clock() + READY_SECONDS
        self._view.note(0.0, "starting")
        while any(member.state == "starting" for member in members):
            if shared_clock() > deadline:
                raise WorkerLost(f"the workers were not ready within {READY_SECONDS:g} s")
            self._fleet.listen(FRAME_SECONDS)
            self._view.show(0.0, members)

    def run(self, *, faults: bool) -> None:
        """Let the workers work, and do to them what is due."""
        self._began = shared_clock()
        due: list[tuple[float, Callable[[], Fault]]] = []
        if faults:
            due.append((CUT_AT * self._seconds, self._cut))
            if self._place.server is not None:
                due.append((RESTART_AT * self._seconds, self._restart))
        for member in self._fleet.members:
            member.begin()
        while (now := self._now()) < self._seconds:
            if due and due[0][0] <= now:
                fault = due.pop(0)[1]()
                self._faults.append(fault)
                self._view.note(fault.at + fault.away, fault.note or fault.text)
            self._fleet.listen(FRAME_SECONDS)
            self._note_recoveries()
            self._view.show(self._now(), self._fleet.members)
        self._took = self._now()
        self._fleet.finish()
        self._note_recoveries()
        self._view.show(self._took, self._fleet.members)

    def _now(self) -> float:
        return shared_clock() - self._began

    # -- faults ----------------------------------------------------------------------------------------------------

    def _cut(self) -> Fault:
        member = self._fleet.members[len(self._fleet.members) // 2]
        fault = Fault("cut", self._now(), "", done=False, workers=(member.number,))
        what = f"the invalidation connection of worker {member.number}"
        try:
            fault.done = cut_subscriber(self._place.url, member.instance_id)
            fault.text = f"cut {what} (CLIENT KILL)" if fault.done else f"cannot cut {what}: it has none"
        except (CacheUnavailable, ConfigError) as error:
            fault.text = f"cannot cut {what}: {error}"
        return fault

    def _restart(self) -> Fault:
        assert self._place.name is not None
        assert self._place.server is not None
        fault = Fault("restart", self._now(), "", done=False, workers=())
        if self._place.server.kind == KIND_FAKE:
            fault.text = f"cannot restart a {KIND_FAKE}"
            return fault
        back_at = fault.at + min(AWAY_SECONDS, AWAY_PART * self._seconds)
        with embedded_outage(self._place.name):
            self._view.note(fault.at, "shut Redis down")
            while (left := back_at - self._now()) > 0:
                self._fleet.listen(min(left, FRAME_SECONDS))
                self._view.show(self._now(), self._fleet.members)
        fault.away = self._now() - fault.at
        fault.note = "started Redis again, empty"
        fault.done = True
        fault.workers = tuple(member.number for member in self._fleet.members)
        fault.text = f"shut Redis down for {duration(fault.away)}, it came back empty"
        return fault

    def _note_recoveries(self) -> None:
        """Find out who has proven its stream again since a fault."""
        notes: list[tuple[float, str]] = []
        for at, fault in enumerate(self._faults):
            until = self._faults[at + 1].at if at + 1 < len(self._faults) else inf
            for member in self._fleet.members:
                if not fault.done or member.number not in fault.workers or member.number in fault.recovered_in:
                    continue
                event = _first_resync(member, self._began + fault.at, self._began + until)
                if event is not None:
                    back_at = self._began + fault.at + fault.away
                    fault.recovered_in[member.number] = max(0.0, event["at"] - back_at)
                    fault.outcomes[member.number] = event["outcome"]
                    notes.append((event["at"] - self._began, _recovery(member, fault, event)))
        for when, text in sorted(notes):
            self._view.note(when, text)

    # -- the end ---------------------------------------------------------------------------------------------------

    def report(self, database: Database) -> dict[str, Any]:
        """Check the last reads, add everything up, judge."""
        members = self._fleet.members
        for member in members:
            for sample in member.samples:
                member.tally.check(sample, database)
        total = _sum([member.tally for member in members])
        lags = sorted(lag / 1000 for member in members for lag in member.lags)
        problems = []
        if total.stale:
            problems.append(f"{total.stale:,} reads were older than {MAX_STALENESS:g} s")
        if total.backward:
            problems.append(f"{total.backward:,} reads went backward")
        if not total.checked:
            problems.append("not one read was checked")
        return {
            "verdict": "not coherent" if problems else "coherent",
            "problems": problems,
            "server": self._place.description,
            "seconds": self._took,
            "reads_per_second": total.reads / self._took,
            "reads_per_second_asked": READS_PER_SECOND * len(members),
            "hit_rate": hit_rate(members),
            **{name: value for name, value in asdict(total).items() if name != "worst"},
            "worst_staleness": total.worst,
            "max_staleness": MAX_STALENESS,
            "propagation": {
                "p50": _percentile(lags, 0.5), "p99": _percentile(lags, 0.99), "max": lags[-1] if lags else None,
                "samples": len(lags),
            },
            "faults": [
                {name: value for name, value in asdict(fault).items() if name != "note"} for fault in self._faults
            ],
            "workers": [
                {
                    "number": member.number, "pid": member.pid, "state": member.state, **asdict(member.tally),
                    "stats": member.stats,
                    "events": [event | {"at": event["at"] - self._began} for event in member.events],
                }
                for member in members
            ],
        }  # fmt: skip


def _first_resync(member: Member, after: float, before: float) -> dict[str, Any] | None:
    return next(
        (event for event in member.events if event["name"] == "resynced" and after <= event["at"] < before), None
    )


def _recovery(member: Member, fault: Fault, event: dict[str, Any]) -> str:
    took = duration(fault.recovered_in[member.number])
    return f"worker {member.number} coherent again after {took}: {outcome(event)}"


def _sum(tallies: Sequence[Tally]) -> Tally:
    total = Tally()
    for tally in tallies:
        for name, value in asdict(tally).items():
            if name != "worst":
                setattr(total, name, getattr(total, name) + value)
        total.worst = max(total.worst, tally.worst)
    return total


def _percentile(ordered: Sequence[float], fraction: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))] if ordered else None


def _summary(report: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the end."""
    propagation = report["propagation"]
    yield ""
    yield (
        f"{report['reads']:,} reads in {report['seconds']:.1f} s: {report['reads_per_second']:,.0f} per second "
        f"(paced at {report['reads_per_second_asked']:,}), hit rate {100 * report['hit_rate']:.2f} %"
    )
    yield (
        f"{several(report['writes'], 'write')}; {several(report['unavailable'], 'read')} had to be answered by the "
        "database because Redis was away"
    )
    if propagation["samples"]:
        yield (
            f"invalidations took p50 {duration(propagation['p50'])}, p99 {duration(propagation['p99'])} "
            f"({propagation['samples']:,} received)"
        )
    for fault in report["faults"]:
        last = max(fault["recovered_in"].values(), default=None)
        recovered, concerned = len(fault["recovered_in"]), len(fault["workers"])
        yield f"at {fault['at']:.1f} s: {fault['text']}" + (
            f"; {recovered} of {concerned} coherent again, the last after {duration(last)}" if last is not None else ""
        )
    yield (
        f"{report['checked']:,} reads checked against the database: {report['stale']:,} older than "
        f"{report['max_staleness']:g} s (the worst: {duration(report['worst_staleness'])}); "
        f"{report['backward']:,} of all reads went backward"
    )
    yield "VERDICT: " + ("coherent" if not report["problems"] else f"NOT COHERENT: {'; '.join(report['problems'])}")


def _probe(url: str) -> str:
    """Return what Redis is called, if it answers.

    Raises:
        ConfigError: the URL cannot be used.
        CacheUnavailable: Redis does not answer.
    """
    with CoherentCache(url, namespace="demo-probe", local_enabled=False) as cache:
        cache.get("probe")
        return f"Redis at {cache.server}"


@contextmanager
def _removed_at_the_end(url: str, namespace: str) -> Iterator[None]:
    """Leave nothing in somebody else's Redis."""
    try:
        yield
    finally:
        with suppress(CoherentCacheError):
            remove_namespace(url, namespace)


def _number(kind: type[int | float], least: int, most: int) -> Callable[[str], float]:
    """Make a type for argparse: a number with bounds."""

    def number(text: str) -> float:
        value = kind(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be from {least:,} to {most:,}, not {text}")
        return value

    number.__name__ = "number"
    return number
