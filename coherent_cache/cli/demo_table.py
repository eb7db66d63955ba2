"""The live table of ``coherent-cache demo``, drawn by rich."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table as Grid
from rich.text import Text

from coherent_cache.cli.demo_fleet import Member
from coherent_cache.cli.demo_view import describe, totals

NOTES_SHOWN: Final = 6
"""Latest notes that are shown under the table."""

WIDE: Final = 112
"""Columns from which on the table has room for the last event."""

_STYLES: Final = {"coherent": "green", "suspect": "yellow", "disconnected": "red"}

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


class Table:
    """A live table, drawn by rich."""

    def __init__(self, title: str, seconds: float) -> None:
        """Begin to draw, on standard output.

        Args:
            title: what is being shown.
            seconds: how long it will take.
        """
        self._console = Console(highlight=False)
        self._title = title
        self._seconds = seconds
        self._notes: deque[str] = deque(maxlen=NOTES_SHOWN)
        self._live = Live(console=self._console, auto_refresh=False)
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
        *others, verdict = lines
        for line in others:
            self._console.print(Text(line))
        self._console.print(Text(verdict, style="bold green" if good else "bold red"))

    def _picture(self, at: float, members: Sequence[Member]) -> RenderableType:
        clock = f"{min(at, self._seconds):.1f} of {self._seconds:g} s"
        heading = Text.assemble((self._title, "bold"), f"   {clock}", overflow="ellipsis", no_wrap=True)
        notes = [Text(note, overflow="ellipsis", no_wrap=True) for note in self._notes]
        total = Text(totals(members), style="bold", overflow="ellipsis", no_wrap=True)
        legend = Text(_LEGEND, style="dim", overflow="ellipsis", no_wrap=True)
        return Group(heading, "", self._table(members), legend, "", total, *notes)

    def _table(self, members: Sequence[Member]) -> RenderableType:
        wide = self._console.width >= WIDE
        table = Grid(box=None, padding=(0, 1, 0, 0), pad_edge=False, expand=wide, header_style="underline")
        for heading, width, justify in _COLUMNS:
            table.add_column(heading, width=width, justify=justify, no_wrap=True)
        if wide:
            table.add_column("last event", no_wrap=True, overflow="ellipsis", ratio=1)
        for member in members:
            state = Text(member.state, style=_STYLES.get(member.state, "dim"))
            last = [Text(_last_event(member))] if wide else []
            table.add_row(str(member.number), str(member.pid), state, *_numbers(member), *last)
        return table


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
