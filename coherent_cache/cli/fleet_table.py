"""A fleet as rows of text: for ``stats`` and ``top``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import inf, isfinite
from typing import Any, Final

from coherent_cache.core.overview import FleetStatus, FleetTotals
from coherent_cache.core.questions import InstanceReport
from coherent_cache.core.states import SEVERITY

GLOB_CHARACTERS: Final = "*?["

_SEVERITY: Final = {state.value: rank for rank, state in enumerate(SEVERITY)}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table.

    Attributes:
        heading: its heading, and its name for ``--sort``.
        text: makes a row's text.
        rank: makes what rows are sorted by.
        most_first: whether the largest comes first.
        total: makes the text of the last row.
    """

    heading: str
    text: Callable[[Row], str]
    rank: Callable[[Row], Any]
    most_first: bool = True
    total: Callable[[Totals], str] = lambda _: ""


@dataclass(frozen=True, slots=True)
class Row:
    """One instance, and what it did per second since the last look.

    Attributes:
        report: what it says about itself.
        reads: keys that were asked for per second; None if it was not seen before.
        invalidations: messages received per second; None if it was not seen before.
    """

    report: InstanceReport
    reads: float | None = None
    invalidations: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the row as a dict of plain values."""
        return self.report.as_dict() | {
            "reads_per_second": self.reads,
            "invalidations_per_second": self.invalidations,
        }


@dataclass(frozen=True, slots=True)
class Totals:
    """The last row: all that are shown together."""

    totals: FleetTotals
    reads: float | None
    invalidations: float | None


def _seconds(value: float | None) -> str:
    if value is None or not isfinite(value):
        return "-"
    return f"{value:.2f}s" if value < 100 else f"{value:.0f}s"  # two digits more say nothing there


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{1000 * value:.1f}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _size(value: int) -> str:
    amount = float(value)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f}{unit}" if unit == "B" else f"{amount:.1f}{unit}"
        amount /= 1000
    return f"{amount:.1f}GB"


def _uptime(seconds: float) -> str:
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02}h"
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"


def _or_least(value: float | None) -> float:
    return -inf if value is None else value


COLUMNS: Final = (
    Column("instance", lambda row: row.report.instance, lambda row: row.report.instance, most_first=False,
           total=lambda all_: f"{all_.totals.instances} instances"),
    Column("state", lambda row: row.report.state, lambda row: _SEVERITY.get(row.report.state, len(_SEVERITY)),
           total=lambda all_: "/".join(f"{count} {state}" for state, count in all_.totals.states.items())),
    Column("horizon", lambda row: _seconds(row.report.horizon_age), lambda row: row.report.horizon_age,
           total=lambda all_: _seconds(all_.totals.horizon_age)),
    Column("entries", lambda row: f"{row.report.entries:,}", lambda row: row.report.entries,
           total=lambda all_: f"{all_.totals.entries:,}"),
    Column("bytes", lambda row: _size(row.report.bytes), lambda row: row.report.bytes,
           total=lambda all_: _size(all_.totals.bytes)),
    Column("hits", lambda row: f"{100 * row.report.hit_rate:.1f}%", lambda row: row.report.hit_rate,
           total=lambda all_: f"{100 * all_.totals.hit_rate:.1f}%"),
    Column("reads/s", lambda row: _rate(row.reads), lambda row: _or_least(row.reads),
           total=lambda all_: _rate(all_.reads)),
    Column("inval/s", lambda row: _rate(row.invalidations), lambda row: _or_least(row.invalidations),
           total=lambda all_: _rate(all_.invalidations)),
    Column("p50ms", lambda row: _milliseconds(row.report.propagation_p50),
           lambda row: _or_least(row.report.propagation_p50),
           total=lambda all_: _milliseconds(all_.totals.propagation_p50)),
    Column("p99ms", lambda row: _milliseconds(row.report.propagation_p99),
           lambda row: _or_least(row.report.propagation_p99),
           total=lambda all_: _milliseconds(all_.totals.propagation_p99)),
    Column("resyncs", lambda row: f"{row.report.resyncs}", lambda row: row.report.resyncs,
           total=lambda all_: f"{all_.totals.resyncs}"),
    Column("flushes", lambda row: f"{row.report.flushes}", lambda row: row.report.flushes,
           total=lambda all_: f"{all_.totals.flushes}"),
    Column("errors", lambda row: f"{row.report.errors}", lambda row: row.report.errors,
           total=lambda all_: f"{all_.totals.errors}"),
    Column("uptime", lambda row: _uptime(row.report.uptime), lambda row: row.report.uptime),
    Column("version", lambda row: row.report.version, lambda row: row.report.version, most_first=False),
)  # fmt: skip
"""The columns, from left to right. The first ones matter most: a narrow terminal cuts the others."""

SORTS: Final[Mapping[str, Column]] = {column.heading: column for column in COLUMNS}


def matches(report: InstanceReport, pattern: str) -> bool:
    """Tell whether an instance's id, host, state or version contains a text or matches a pattern with ``*``."""
    if not any(character in pattern for character in GLOB_CHARACTERS):
        pattern = f"*{pattern}*"
    return any(fnmatchcase(text, pattern) for text in (report.instance, report.host, report.state, report.version))


def rows_of(
    status: FleetStatus, *, sort: str = "instance", pattern: str = "", before: Iterable[InstanceReport] = ()
) -> list[Row]:
    """Return the rows of those instances that are wanted, in the order that is wanted.

    Args:
        status: the fleet.
        sort: heading of the column to sort by.
        pattern: see :func:`matches`; empty for all.
        before: earlier reports, to tell what was done per second since.
    """
    earlier = {each.member: each for each in before}
    rows = [
        _row(report, earlier.get(report.member))
        for report in status.instances
        if not pattern or matches(report, pattern)
    ]
    column = SORTS[sort]
    rows.sort(key=lambda row: row.report.instance)
    rows.sort(key=column.rank, reverse=column.most_first)
    return rows


def _row(report: InstanceReport, earlier: InstanceReport | None) -> Row:
    seconds = 0.0 if earlier is None else report.uptime - earlier.uptime
    if earlier is None or seconds <= 0:
        return Row(report)
    return Row(
        report,
        (report.requests - earlier.requests) / seconds,
        (report.invalidations - earlier.invalidations) / seconds,
    )


def totals_of(status: FleetStatus, rows: Sequence[Row]) -> Totals:
    """Return the totals of the rows that are shown."""
    shown = FleetStatus(
        namespace=status.namespace,
        server=status.server,
        exists=status.exists,
        instances=tuple([row.report for row in rows]),
        silent=status.silent,
    )
    return Totals(shown.totals, _sum([row.reads for row in rows]), _sum([row.invalidations for row in rows]))


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def heading(status: FleetStatus) -> str:
    """Return what is shown above the table."""
    return f"{status.namespace} at {status.server}"


def remarks(status: FleetStatus) -> list[str]:
    """Return what is to be said about a fleet beside its table."""
    told = []
    if not status.exists:
        told.append(f"nothing is there: no cache has ever used namespace {status.namespace!r} at {status.server}")
    elif not status.instances:
        told.append(
            f"no instance reports itself in {status.namespace!r}: none with a local tier runs, or none reports "
            "(local_enabled=False, report=False)"
        )
    if status.silent:
        told.append(
            f"{len(status.silent)} more with a local tier, seen lately, not reporting (just crashed, memory full, or "
            f"report=False): {', '.join(status.silent[:5])}{' ...' if len(status.silent) > 5 else ''}"
        )
    return told


def plain(status: FleetStatus, rows: Sequence[Row]) -> list[str]:
    """Return a table as lines of text."""
    totals = totals_of(status, rows)
    cells = [
        [column.heading for column in COLUMNS],
        *[[column.text(row) for column in COLUMNS] for row in rows],
        [column.total(totals) for column in COLUMNS],
    ]
    widths = [max(len(line[at]) for line in cells) for at in range(len(COLUMNS))]
    left = (0, 1)
    return [
        "  ".join(
            text.ljust(width) if at in left else text.rjust(width)
            for at, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


def document(status: FleetStatus, rows: Sequence[Row]) -> dict[str, Any]:
    """Return a table as one JSON document."""
    totals = totals_of(status, rows)
    return status.as_dict() | {
        "instances": [row.as_dict() for row in rows],
        "totals": totals.totals.as_dict()
        | {"reads_per_second": totals.reads, "invalidations_per_second": totals.invalidations},
    }
