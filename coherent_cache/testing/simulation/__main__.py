"""``python -m coherent_cache.testing.simulation``: run schedules for some time, or one of them again."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count, islice

from coherent_cache.testing.simulation.report import timeline
from coherent_cache.testing.simulation.runner import Failure, explain, search, violation_of
from coherent_cache.testing.simulation.schedule import PROFILES, draw
from coherent_cache.testing.simulation.world import World

PLAIN_INTERVAL = 5.0
"""Seconds between two lines of progress where there is no bar."""


class OutOfTime(Exception):
    """The time is over."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m coherent_cache.testing.simulation", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long to run (default: %(default)s)")
    parser.add_argument("--count", type=int, help="run that many schedules instead, whatever time they take")
    parser.add_argument("--seed", type=int, default=0, help="first seed; the following ones are next (default: 0)")
    parser.add_argument("--profile", choices=PROFILES, help="one kind of schedules only (default: a mixture)")
    parser.add_argument(
        "--replay", type=int, metavar="SEED", help="run one seed and tell its story, shrunk if it fails"
    )
    return parser


@contextmanager
def _progress(total: float) -> Iterator[Callable[[float, str], None]]:
    """Give a function that shows how much of ``total`` is done: a bar with rich on a terminal, else lines."""
    try:
        from rich.progress import Progress  # noqa: PLC0415  # an optional dependency
    except ImportError:
        bar = None
    else:
        bar = Progress() if sys.stderr.isatty() else None
    if bar is None:
        due = [time.monotonic() + PLAIN_INTERVAL]

        def show_line(done: float, text: str) -> None:
            if time.monotonic() >= due[0]:
                due[0] = time.monotonic() + PLAIN_INTERVAL
                print(f"{done / total:4.0%}  {text}", file=sys.stderr, flush=True)  # noqa: T201

        yield show_line
        return
    with bar:
        task = bar.add_task("simulating", total=total)
        yield lambda done, text: bar.update(task, completed=done, description=text)


def _run(args: argparse.Namespace) -> Failure | None:
    started = time.monotonic()
    total = float(args.count) if args.count else args.minutes * 60
    done = 0
    with _progress(total) as show:

        def on_progress(_seed: int) -> None:
            nonlocal done
            done += 1
            if done % 50 == 0:
                passed = time.monotonic() - started
                show(done if args.count else min(passed, total), f"{done} schedules, {done / passed:.0f}/s")
                if not args.count and passed >= total:
                    raise OutOfTime

        seeds = islice(count(args.seed), args.count) if args.count else count(args.seed)
        failure = None
        with suppress(OutOfTime):
            failure = search(seeds, profile=args.profile, on_progress=on_progress)
    passed = time.monotonic() - started
    if failure is None:
        print(f"{done} schedules from seed {args.seed} in {passed:.0f} s: no violation")  # noqa: T201
    return failure


def _replay(args: argparse.Namespace) -> Failure | None:
    schedule = draw(args.replay, args.profile)
    violation = violation_of(schedule)
    if violation is not None:
        return explain(schedule, violation)
    world = World(schedule, trace=True)
    world.run()
    print(timeline(world, None))  # noqa: T201
    return None


def main() -> int:
    """Run; return 1 if a promise was broken."""
    args = _parser().parse_args()
    failure = _run(args) if args.replay is None else _replay(args)
    if failure is None:
        return 0
    again = f"--replay {failure.schedule.seed}" + (f" --profile {args.profile}" if args.profile else "")
    print(failure.report)  # noqa: T201
    print(f"\nagain: python -m coherent_cache.testing.simulation {again}")  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main())
