"""Watch all live instances of a namespace in a table that refreshes, until Ctrl-C.

What is per second is counted from one look to the next. Outside a terminal the table is printed anew each time; with
--json each look is one line.

Examples:
  coherent-cache top --namespace shop
  coherent-cache top --namespace shop --sort p99ms --filter disconnected
  coherent-cache top --namespace shop --once
  coherent-cache top --namespace shop --json --every 10
  coherent-cache top --namespace shop --web
  coherent-cache top --namespace shop --web-report fleet.html --seconds 60
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from coherent_cache.cli import web
from coherent_cache.cli.common import EXIT_OK, EXIT_PROBLEM, add_connection, complain, open_cache, say, say_json
from coherent_cache.cli.fleet_table import COLUMNS, Row, document, heading, plain, remarks, rows_of, totals_of
from coherent_cache.cli.stats import add_choice
from coherent_cache.core.overview import FleetStatus
from coherent_cache.core.questions import InstanceReport
from coherent_cache.errors import CacheUnavailable, ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

EVERY: Final = 1.0
"""Seconds between two looks."""

LEAST_EVERY: Final = 0.1
"""Fewest seconds between two looks: each is a round trip or two."""

ONCE_INTERVALS: Final = 1.2
"""Times the interval of reports that ``--once`` waits for the next ones, if that is longer."""

_STYLES: Final = {"coherent": "green", "suspect": "yellow", "connecting": "yellow", "disconnected": "red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--every", type=float, default=EVERY, metavar="SECONDS", help=f"between two looks ({EVERY:g})")
    parser.add_argument("--once", action="store_true", help="look twice, show one table with rates, and end")
    web.add_arguments(parser)
    add_choice(parser)
    add_connection(parser)


def run(args: argparse.Namespace) -> int:
    """Watch the fleet."""
    if not args.every >= LEAST_EVERY:
        raise ConfigError("every", f"must be at least {LEAST_EVERY:g} seconds, not {args.every:g}")
    if args.web or args.web_report is not None:
        return web.run(args)
    looks = Looks()
    status: FleetStatus | None = None
    with open_cache(args) as cache, ExitStack() as stack:
        screen = None
        if args.once:
            first = cache.fleet().instances
            looks.before(first)
            time.sleep(max(args.every, ONCE_INTERVALS * max((each.interval for each in first), default=0.0)))
        elif not args.json and sys.stdout.isatty():
            screen = stack.enter_context(_screen())
        while True:
            try:
                status, problem = cache.fleet(), ""
            except CacheUnavailable as error:
                if status is None:
                    raise
                problem = str(error)
            rows = rows_of(status, sort=args.sort, pattern=args.filter, before=looks.before(status.instances))
            _show(args, screen, status, rows, problem)
            if args.once:
                return EXIT_OK if status.instances else EXIT_PROBLEM
            time.sleep(args.every)


class Looks:
    """Remembers each instance's last report but one: a look may find the report that the last look found."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._last: dict[str, tuple[InstanceReport | None, InstanceReport]] = {}

    def before(self, reports: Sequence[InstanceReport]) -> list[InstanceReport]:
        """Take the reports of a look; return those that their rates are counted from."""
        known = self._last
        self._last = {}
        for each in reports:
            earlier, last = known.get(each.member, (None, each))
            self._last[each.member] = (last, each) if each.uptime > last.uptime else (earlier, last)
        return [earlier for earlier, _ in self._last.values() if earlier is not None]


def _show(
    args: argparse.Namespace, screen: Live | None, status: FleetStatus, rows: Sequence[Row], problem: str
) -> None:
    told = [*remarks(status), *([f"Redis does not answer, the table is old: {problem}"] if problem else [])]
    if args.json:
        say_json({"at": time.time(), "problem": problem or None} | document(status, rows))
    elif screen is not None:
        screen.update(_picture(status, rows, told), refresh=True)
    else:
        for line in (heading(status), *plain(status, rows), ""):
            say(line)
        for remark in told:
            complain(remark)


def _screen() -> Live:
    from rich.live import Live  # noqa: PLC0415  # an extra, and only for terminals

    return Live(auto_refresh=False, screen=True, vertical_overflow="crop")


def _picture(status: FleetStatus, rows: Sequence[Row], told: Sequence[str]) -> RenderableType:
    from rich.console import Group  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    totals = totals_of(status, rows)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="underline", show_footer=True)
    for column in COLUMNS:
        left = column.heading in {"instance", "state"}
        footer = Text(column.total(totals), style="bold")
        table.add_column(column.heading, footer, justify="left" if left else "right", no_wrap=True, overflow="ellipsis")
    for row in rows:
        style = _STYLES.get(row.report.state, "")
        cells = [column.text(row) for column in COLUMNS]
        table.add_row(*[Text(text, style=style if at == 1 else "") for at, text in enumerate(cells)])
    clock = time.strftime("%H:%M:%S")
    title = Text.assemble((heading(status), "bold"), f"   {clock}", no_wrap=True, overflow="ellipsis")
    notes = [Text(line, style="yellow") for line in told]
    return Group(title, "", table, "", *notes, Text("Ctrl-C ends", style="dim"))
