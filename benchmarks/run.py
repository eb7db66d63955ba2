"""All benchmarks: ``python benchmarks/run.py [--quick] [--json FILE] [--url URL] [--only NAME ...]``.

Each question is measured in a process of its own, so that none inherits another's heap and threads. The figures of a
full run go to ``benchmarks/results/<date>-issue2.json`` unless ``--json`` says otherwise.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from bench import document, finish, one_server, parse_options
from measure import Row

QUESTIONS: Final = (
    "local_hit",
    "async_hit",
    "set_value",
    "miss",
    "get_many",
    "propagation",
    "subscriber",
    "memory",
    "round_trip",
    "events",
    "tail",
)
HERE: Final = Path(__file__).resolve().parent


def measure_apart(name: str, url: str, *, quick: bool) -> list[Row]:
    """Run one question's file in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="coherent-cache-benchmarks-") as folder:
        target = Path(folder) / "rows.json"
        command = [sys.executable, str(HERE / f"{name}.py"), "--url", url, "--json", str(target)]
        # Its exit code says whether its limits hold; that is decided here, for all.
        subprocess.run(command + ["--quick"] * quick, stdout=subprocess.DEVNULL, check=False)
        if not target.exists():
            raise SystemExit(f"{name}.py failed")
        return [row_of(data) for data in json.loads(target.read_text("utf-8"))["rows"]]


def row_of(data: dict[str, Any]) -> Row:
    """Make a row of its JSON."""
    fields = {name: value for name, value in data.items() if name != "verdict"}
    if fields["spread"] is not None:
        fields["spread"] = tuple(fields["spread"])
    return Row(**fields)


def main() -> int:
    """Run what the command line asks for."""
    options = parse_options(sys.argv[1:], QUESTIONS)
    rows: list[Row] = []
    with one_server(options.url) as url:
        for name in options.only or QUESTIONS:
            print(f"{name} ...", file=sys.stderr, flush=True)
            rows += measure_apart(name, url, quick=options.quick)
        report = document(rows, url, quick=options.quick)
    if options.json is None and not options.quick and not options.only:
        options.json = HERE / "results" / f"{report['date'][:10]}-issue2.json"
    return finish(report, rows, options)


if __name__ == "__main__":
    sys.exit(main())
