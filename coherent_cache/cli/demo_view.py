"""What ``coherent-cache demo`` shows while it runs: a live table on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol

from coherent_cache.cli.common import say
from coherent_cache.cli.demo_fleet import Member

LINE_SECONDS: Final = 2.0
"""Seconds between two plain lines about the whole fleet."""


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
            return f"resynced: {outcome(event)}"
        case "history_lost":
            return f"Redis lost its data: {event['dropped']} entries dropped"
        case "subscriber_lost":
            return f"connection lost: {event['cause']}"
        case "subscriber_connected":
            return "connected"
        case name:
            details = ", ".join(f"{key} {value}" for key, value in event.items() if key not in ("at", "name"))
            return f"{name}: {details}"


def outcome(event: dict[str, Any]) -> str:
    """Return in a few words how a stream was proven again."""
    known = {
        "first": "began with an empty local tier",
        "unbroken": "nothing was missed",
        "replayed": f"replayed {several(event['replayed'], 'missed message')}",
        "flushed": "entries dropped",
    }
    return known.get(event["outcome"], str(event["outcome"]))


def several(number: int, what: str) -> str:
    """Return a number of things."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def duration(seconds: float) -> str:
    """Return a time in milliseconds, or in seconds from one on."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def make_view(title: str, seconds: float) -> View:
    """Return the best view that standard output can show: a table needs a terminal, and rich."""
    if sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        try:
            from coherent_cache.cli.demo_table import Table  # noqa: PLC0415  # needs rich, which is optional
        except ImportError:
            say("(install 'coherent-cache[cli]' for a live table)")
        else:
            return Table(title, seconds)
    say(title)
    return Lines()
