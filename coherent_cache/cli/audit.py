"""Find out whether a fleet is coherent: what live instances hold is compared with Redis, twice.

Each instance is asked which versions it holds of some keys; then Redis is read; then the instances are asked again
about what differed, after 0.1, 1 and 10 seconds and after the bound that their options allow. Told is the part of
entries that were not outdated for longer than that. Exits with 1 if an entry was outdated beyond the bound, or if there
was nobody to ask.

Examples:
  coherent-cache audit --namespace shop
  coherent-cache audit --namespace shop --key product:1 --key product:2
  coherent-cache audit --namespace shop --keys-file keys.txt --json
  coherent-cache audit --namespace shop --every 30 --count 20
"""

from __future__ import annotations

import argparse
import time
from math import isinf
from pathlib import Path
from typing import Any, Final

from coherent_cache.auditor import DEFAULT_SAMPLE
from coherent_cache.cli.common import EXIT_OK, EXIT_PROBLEM, add_connection, complain, open_cache, say, say_json
from coherent_cache.core.auditing import AuditReport, Offender
from coherent_cache.errors import ConfigError

RECENT_LINES: Final = 5
"""Latest messages that are shown of an offender."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--key", action="append", metavar="KEY", help="a key to look at; may be repeated")
    parser.add_argument("--keys-file", type=Path, metavar="FILE", help="a file with a key a line")
    parser.add_argument(
        "--sample",
        type=int,
        default=DEFAULT_SAMPLE,
        metavar="N",
        help=f"else: keys of each instance ({DEFAULT_SAMPLE})",
    )
    parser.add_argument("--every", type=float, metavar="SECONDS", help="audit again and again, this long after each")
    parser.add_argument("--count", type=int, metavar="N", help="with --every: how often (else until Ctrl-C)")
    add_connection(parser)


def run(args: argparse.Namespace) -> int:
    """Audit the fleet."""
    keys = _keys(args)
    if args.every is not None and not args.every >= 0:
        raise ConfigError("every", f"must be seconds from 0, not {args.every:g}")
    if args.count is not None and (args.every is None or args.count < 1):
        raise ConfigError("count", "must be 1 or more, and goes with --every")
    code, done = EXIT_OK, 0
    with open_cache(args) as cache:
        while True:
            report = cache.audit(keys, sample=args.sample)
            _show(args, report)
            done += 1
            if not report.coherent or not report.answered:
                code = EXIT_PROBLEM
            if args.every is None or done == args.count:
                return code
            time.sleep(args.every)


def _keys(args: argparse.Namespace) -> list[str] | None:
    keys: list[str] = list(args.key or ())
    if args.keys_file is not None:
        try:
            keys += [line for line in args.keys_file.read_text("utf-8").splitlines() if line]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError("keys-file", f"cannot be read: {error}") from None
        if not keys:
            raise ConfigError("keys-file", "names no key")
    return keys or None


def _show(args: argparse.Namespace, report: AuditReport) -> None:
    if args.json:
        document: dict[str, Any] = {"at": time.time(), **report.as_dict()}
        say_json(document)
    else:
        for line in _lines(report):
            say(line)
    if not report.asked:
        complain(f"nobody to ask: no instance with a local tier listens in namespace {report.namespace!r}")


def _lines(report: AuditReport) -> list[str]:
    entries = f"{report.checked:,} entries of {report.keys:,} keys compared in {report.seconds:.1f} s"
    lines = [f"{report.namespace}: {report.answered} of {report.asked} instances answered; {entries}"]
    if not report.checked:
        return [*lines, "nothing was compared: no instance holds any of these keys"] if report.answered else lines
    lines += [
        f"  not outdated for {delay:>4g} s or more: {100 * (report.consistency(delay) or 0.0):.4f} %   "
        f"{_nines(report, delay)}"
        for delay in report.stale
    ]
    lines.append(f"  behind at the first look, on messages' way: {report.behind:,}")
    for count, what in (
        (report.not_served, "held, but would not have been served (disconnected)"),
        (report.undecided, "not decided: history or server changed, an instance left, or the log is too short"),
        (report.gone, "no longer in Redis, without a message: expired there, evicted, or deleted by another program"),
    ):
        if count:
            lines.append(f"  {count:,} {what}")
    for offender in report.offenders:
        lines += _about(offender)
    if report.coherent:
        lines.append(f"coherent: nothing was outdated for {report.bound:.2f} s, which the options allow")
    else:
        lines.append(f"NOT COHERENT: {report.beyond:,} entries were outdated for more than {report.bound:.2f} s")
    return lines


def _nines(report: AuditReport, delay: float) -> str:
    nines = report.nines(delay)
    assert nines is not None
    return f"none of {report.checked:,}" if isinf(nines) else f"{nines:.1f} nines, {report.stale[delay]:,} entries"


def _about(offender: Offender) -> list[str]:
    newer = f"version {offender.least} or newer is due" if offender.least else "Redis does not have that version"
    lines = [f"  {offender.instance} holds {offender.key!r} at version {offender.held}; {newer}"]
    lines += [
        f"    {each['seconds_ago']:.1f} s ago: {each['kind']} at version {each['seq']} by {each['origin']}"
        f"{'' if each['applied'] else ', which changed nothing there'}"
        for each in offender.recent[:RECENT_LINES]
    ]
    return lines if offender.recent else [*lines, "    it has had no message about this key lately"]
