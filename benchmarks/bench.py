"""What every benchmark file shares: its command line, its server, its clients and caches, the table and the JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import redis
from measure import QUICK_TOLERANCE, Row
from server import describe, private_server

import coherent_cache
from coherent_cache import CoherentCache

FORMAT: Final = 1
"""Of the JSON document."""

READY_TIMEOUT: Final = 10.0

PACKAGES: Final = ("redis", "hiredis", "msgpack", "structlog", "rich")


class Bench:
    """What a benchmark gets: where Redis is, how much to do, and things that are closed after it."""

    def __init__(self, url: str, *, quick: bool, stack: ExitStack) -> None:
        self.url = url
        self.quick = quick
        self.namespace = f"bench-{uuid4().hex[:12]}"
        self._stack = stack

    def times(self, full: int, quick: int) -> int:
        """Return how often to do something."""
        return quick if self.quick else full

    def open(self, resource: Any) -> Any:
        """Close a context manager after the benchmark; return what it gives."""
        return self._stack.enter_context(resource)

    def client(self, **options: Any) -> redis.Redis:
        """Return a plain client of redis-py, as users make it."""
        return self.open(redis.Redis.from_url(self.url, **options))

    def cache(self, *, suffix: str = "", **options: Any) -> CoherentCache:
        """Return a cache that is ready, of this benchmark's namespace or of another that is named after it."""
        return self.open(ready_cache(self.url, self.namespace + suffix, **options))


@contextmanager
def ready_cache(url: str, namespace: str, **options: Any) -> Iterator[CoherentCache]:
    """Yield a cache that is coherent."""
    with CoherentCache(url, namespace=namespace, **options) as cache:
        if not cache.wait_ready(READY_TIMEOUT):
            raise TimeoutError(f"the cache is still {cache.state}")
        yield cache


Measure = Callable[[Bench], list[Row]]


def main(measure: Measure) -> None:
    """Run one benchmark by hand: the body of each file."""
    options = parse_options(sys.argv[1:])
    with one_server(options.url) as url:
        rows = run(measure, url, quick=options.quick)
        report = document(rows, url, quick=options.quick)
    sys.exit(finish(report, rows, options))


def parse_options(arguments: Sequence[str], names: Sequence[str] = ()) -> argparse.Namespace:
    """Parse the command line; with ``names``, also which benchmarks to run."""
    parser = argparse.ArgumentParser(description="Benchmarks of coherent-cache. The ratios count, not the times.")
    parser.add_argument("--quick", action="store_true", help="less than a minute; fails only far beyond a limit")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--url", help="use this Redis, and its database, instead of a private one")
    if names:
        parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    return parser.parse_args(arguments)


@contextmanager
def one_server(url: str | None) -> Iterator[str]:
    """Yield the given URL, or that of a private server."""
    if url is not None:
        yield url
        return
    with private_server() as private:
        yield private


def run(measure: Measure, url: str, *, quick: bool) -> list[Row]:
    """Run one benchmark; its keys in Redis are removed afterwards."""
    with ExitStack() as stack:
        bench = Bench(url, quick=quick, stack=stack)
        try:
            return measure(bench)
        finally:
            with redis.Redis.from_url(url) as client:
                for key in client.scan_iter(match=f"*{bench.namespace}*", count=1000):
                    client.unlink(key)


def document(rows: Sequence[Row], url: str, *, quick: bool) -> dict[str, Any]:
    """Return the figures with what one must know about them; no names of hosts, users or folders."""
    return {
        "format": FORMAT,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *(["--quick"] if quick else [])]),
        "machine": machine(),
        "versions": versions(),
        "server": describe(url),
        "rows": [asdict(row) | {"verdict": row.verdict} for row in rows],
    }


def machine() -> dict[str, Any]:
    """Return what kind of machine this is, and how busy it is: above about 1 the figures are those of a crowd."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": model,
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages."""
    found = {"python": platform.python_version(), "implementation": platform.python_implementation()}
    found["coherent-cache"] = coherent_cache.__version__
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def finish(report: dict[str, Any], rows: Sequence[Row], options: argparse.Namespace) -> int:
    """Print the table, write the JSON; return the exit code."""
    show(rows)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    tolerance = QUICK_TOLERANCE if options.quick else 1.0
    over = [row for row in rows if not row.holds(tolerance)]
    for row in over:
        print(f"over the limit: {row.question}: {row.case}")
    return 1 if over else 0


COLUMNS: Final = ("question", "case", "measured", "compared with", "ratio", "quartiles", "limit", "")


def cells(row: Row) -> tuple[str, ...]:
    """Return a row of the table as text."""
    reference = "" if row.reference_value is None else f"{row.reference} {quantity(row.reference_value, row.unit)}"
    return (
        row.question,
        row.case,
        quantity(row.value, row.unit),
        reference,
        "" if row.ratio is None else f"{row.ratio:.2f}",
        "" if row.spread is None else f"{row.spread[0]:.2f}-{row.spread[1]:.2f}",
        "" if row.limit is None else f"{row.limit:g}",
        row.verdict,
    )


def quantity(value: float, unit: str) -> str:
    """Return a number with three significant digits, or as a whole number, and its unit."""
    number = f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
    return f"{number}{unit}" if unit == "/s" else f"{number} {unit}"


def show(rows: Sequence[Row]) -> None:
    """Print the table: by rich if it is installed and there is a terminal, else plain."""
    lines = [cells(row) for row in rows]
    if sys.stdout.isatty():
        try:
            from rich.console import Console  # noqa: PLC0415  # optional
            from rich.table import Table  # noqa: PLC0415
        except ImportError:
            pass
        else:
            table = Table(*COLUMNS)
            for line in lines:
                table.add_row(*line)
            Console().print(table)
            return
    print(plain_table(lines))


def plain_table(lines: Sequence[Sequence[str]]) -> str:
    """Return the table as text in columns."""
    widths = [max(map(len, column)) for column in zip(COLUMNS, *lines, strict=True)]
    table = [COLUMNS, tuple("-" * width for width in widths), *lines]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
    )
