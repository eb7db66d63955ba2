"""What ``coherent-cache demo`` shows while it runs: a live table on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from coherent_cache.cli.common import say
from coherent_cache.cli.demo_fleet import Member

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

LINE_SECONDS: Final = 2.0
"""Seconds between two plain lines about the whole fleet."""

NOTES_SHOWN: Final = 6
"""Latest notes that are shown under the table."""

WIDE: Final = 112
"""Columns from which on the table has room for the last event."""

_STYLES: Final = {"coherent": "green", "suspect": "yellow", "disconnected": "red"}


class View(Protocol):
    """Shows a running fleet."""

    def note(self, at: float, text: str) -> None:
        """Show something that happened, ``at`` seconds after the beginning."""

    def show(self, at: float, members: Sequence[Member]) -> None:
        """Show how the workers are doing."""

    def close(self) -> None:
        """Leave the last picture as it is."""

    def conclude(self, lines: Iterable[str], *, good: bool) -> None:
        """Show what came out in the end; the last line is the verdict."""


class Silence:
    """Shows nothing."""

    def note(self, at: float, text: str) -> None:
        """Show nothing."""

    def show(self, at: float, members: Sequence[Member]) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Do nothing."""

    def conclude(self, lines: Iterable[str], *, good: bool) -> None:
        """Show nothing."""


class Lines:
    """Plain lines, for pipes and files."""

    def __init__(self) -> None:
        """Show nothing yet."""
        self._next = LINE_SECONDS

    def note(self, at: float, text: str) -> None:
        """Print what happened."""
        say(f"{at:6.1f} s  {text}")

    def show(self, at: float, members: Sequence[Member]) -> None:
        """Print a line about the whole fleet, now and then."""
        if at >= self._next:
            self._next = at + LINE_SECONDS
            states = [member.state for member in members]
            some = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
            say(f"{at:6.1f} s  {totals(members)}; workers: {some}")

    def close(self) -> None:
        """Do nothing."""

    def conclude(self, lines: Iterable[str], *, good: bool) -> None:  # noqa: ARG002  # plain lines have no colours
        """Print the lines."""
        for line in lines:
            say(line)


class Table:
    """A live table, drawn by rich."""

    def __init__(self, console: Console, title: str, seconds: float) -> None:
        """Begin to draw.

        Args:
            console: a terminal.
            title: what is being shown.
            seconds: how long it will take.
        """
        from rich.live import Live

        self._console = console
        self._title = title
        self._seconds = seconds
        self._notes: deque[str] = deque(maxlen=NOTES_SHOWN)
        self._live = Live(console=console, auto_refresh=False)
        self._live.start()

    def note(self, at: float, text: str) -> None:
        """Put what happened under the table."""
        self._notes.append(f"{at:6.1f} s  {text}")

    def show(self, at: float, members: Sequence[Member]) -> None:
        """Draw the table anew."""
        self._live.update(self._picture(at, members), refresh=True)

    def close(self) -> None:
        """Leave the last picture, and the cursor where it was."""
        self._live.stop()

    def conclude(self, lines: Iterable[str], *, good: bool) -> None:
        """Print the lines, the verdict in colour."""
        from rich.text import Text

        *others, verdict = lines
        for line in others:
            self._console.print(Text(line))
        self._console.print(Text(verdict, style="bold green" if good else "bold red"))

    def _picture(self, at: float, members: Sequence[Member]) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        clock = f"{min(at, self._seconds):.1f} of {self._seconds:g} s"
        heading = Text.assemble((self._title, "bold"), f"   {clock}", overflow="ellipsis", no_wrap=True)
        notes = [Text(note, overflow="ellipsis", no_wrap=True) for note in self._notes]
        total = Text(totals(members), style="bold", overflow="ellipsis", no_wrap=True)
        legend = Text(_LEGEND, style="dim", overflow="ellipsis", no_wrap=True)
        return Group(heading, "", self._table(members), legend, "", total, *notes)

    def _table(self, members: Sequence[Member]) -> RenderableType:
        from rich.table import Table as RichTable
        from rich.text import Text

        wide = self._console.width >= WIDE
        table = RichTable(box=None, padding=(0, 1, 0, 0), pad_edge=False, expand=wide, header_style="underline")
        for heading, width, justify in _COLUMNS:
            table.add_column(heading, width=width, justify=justify, no_wrap=True)
        if wide:
            table.add_column("last event", no_wrap=True, overflow="ellipsis", ratio=1)
        for member in members:
            state = Text(member.state, style=_STYLES.get(member.state, "dim"))
            last = [Text(_last_event(member))] if wide else []
            table.add_row(str(member.number), str(member.pid), state, *_numbers(member), *last)
        return table


_COLUMNS: Final[tuple[tuple[str, int, Literal["left", "right"]], ...]] = (
    ("#", 2, "right"),
    ("pid", 7, "right"),
    ("state", 12, "left"),
    ("reads/s", 7, "right"),
    ("hits", 6, "right"),
    ("local", 5, "right"),
    ("writes", 6, "right"),
    ("inval.", 6, "right"),
    ("r/r/f", 8, "right"),
    ("p50/p99ms", 9, "right"),
)
"""Headings and widths: together less than 80 columns, with a space after each."""

_LEGEND: Final = "local: entries; inval.: invalidations applied; r/r/f: resyncs/replayed/flushes"

_BEHIND_THE_SCENES: Final = ("state_changed", "subscriber_connected")


def _last_event(member: Member) -> str:
    """Return the last event that says more than the state does."""
    telling = (event for event in reversed(member.events) if event["name"] not in _BEHIND_THE_SCENES)
    return next((describe(event) for event in telling), "")


def _numbers(member: Member) -> list[str]:
    stats = member.stats
    if not stats:
        return [""] * (len(_COLUMNS) - 3)
    return [
        f"{member.reads_per_second:,.0f}",
        f"{100 * stats['hit_rate']:.1f}%",
        f"{stats['size']}",
        f"{member.tally.writes}",
        f"{stats['invalidations_applied']}",
        f"{stats['resyncs']}/{stats['replays']}/{stats['flushes']}",
        f"{_milliseconds(stats['propagation_p50'])}/{_milliseconds(stats['propagation_p99'])}",
    ]


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.1f}"


def totals(members: Sequence[Member]) -> str:
    """Return one line about the whole fleet."""
    tallies = [member.tally for member in members]
    rate = sum(member.reads_per_second for member in members)
    return (
        f"{rate:,.0f} reads/s, {100 * hit_rate(members):.1f} % hits, "
        f"{sum(tally.writes for tally in tallies):,} writes; {sum(tally.checked for tally in tallies):,} checked: "
        f"{sum(tally.stale for tally in tallies):,} too old, {sum(tally.backward for tally in tallies):,} backward"
    )


def hit_rate(members: Sequence[Member]) -> float:
    """Return which part of all reads the local tiers served."""
    asked = sum(member.stats.get("total_requests", 0) for member in members)
    return sum(member.stats.get("hits", 0) for member in members) / asked if asked else 0.0


def describe(event: dict[str, Any]) -> str:
    """Return an event of a cache in a few words."""
    match event["name"]:
        case "state_changed":
            return f"{event['old']} -> {event['new']}: {event['cause']}"
        case "resynced":
            return f"resynced: {event['outcome']}" + (f" {event['replayed']}" if event["replayed"] else "")
        case "history_lost":
            return f"Redis lost its data: {event['dropped']} entries dropped"
        case "subscriber_lost":
            return f"connection lost: {event['cause']}"
        case "subscriber_connected":
            return "connected"
        case name:
            details = ", ".join(f"{key} {value}" for key, value in event.items() if key not in ("at", "name"))
            return f"{name}: {details}"


def make_view(title: str, seconds: float) -> View:
    """Return the best view that standard output can show: a table needs a terminal, and rich."""
    if sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        try:
            from rich.console import Console
        except ImportError:
            say("(install 'coherent-cache[cli]' for a live table)")
        else:
            return Table(Console(highlight=False), title, seconds)
    say(title)
    return Lines()
