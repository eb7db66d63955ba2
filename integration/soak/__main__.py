"""``python -m integration.soak``: run a soak, check it, report it. Exit status 1 on any violation."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from integration.soak.checker import check
from integration.soak.faults import ALL
from integration.soak.plot import make_plot
from integration.soak.report import make_list, make_report
from integration.soak.run import load, seed_of, soak


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m integration.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="length; default %(default)s")
    parser.add_argument("--workers", type=int, default=4, help="processes; default %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="threads of each; default %(default)s")
    parser.add_argument("--seed", help="decides which faults happen; default: another one each time")
    parser.add_argument("--protocol", type=int, choices=(2, 3), default=3, help="of Redis; default %(default)s")
    parser.add_argument("--faults", default="all", help=f"comma-separated, or none; default all: {', '.join(ALL)}")
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="write report.txt, faults.txt, soak.svg and all notes there"
    )
    parser.add_argument("--check", type=Path, metavar="DIR", help="run nothing: check again what --report DIR has left")
    given = parser.parse_args(arguments)
    faults = {"all": list(ALL), "none": []}.get(given.faults, given.faults.split(","))
    if unknown := set(faults) - set(ALL):
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    if given.check is not None:
        history, seed = load(given.check / "notes"), seed_of(given.check / "notes")
    else:
        folder = None if given.report is None else given.report / "notes"
        history, seed = soak(
            seconds=given.seconds, workers=given.workers, threads=given.threads, seed=given.seed, faults=faults,
            folder=folder, query=f"?protocol={given.protocol}", say=lambda text: print(text, flush=True),
        )  # fmt: skip
    findings = check(history)
    report = make_report(history, findings, seed=seed)
    print(report)
    folder = given.report or given.check
    if folder is not None:
        (folder / "report.txt").write_text(report)
        (folder / "faults.txt").write_text(make_list(history))
        (folder / "soak.svg").write_text(make_plot(history, findings, seed=seed))
        print(f"written to {folder}: report.txt, faults.txt, soak.svg, notes")
    if findings.violations:
        print(f"{len(findings.violations)} violations; again with --seed {seed}")
    return 1 if findings.violations else 0


if __name__ == "__main__":
    sys.exit(main())
