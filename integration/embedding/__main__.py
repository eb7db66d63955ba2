"""``python -m integration.embedding``: a soak of gunicorn's workers under faults. Exit status 1 on any violation."""

from __future__ import annotations

import argparse
import sys

from integration.embedding.soak import CLASSES, soak


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m integration.embedding", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="length; default %(default)s")
    parser.add_argument("--workers", type=int, default=4, help="processes; default %(default)s")
    parser.add_argument("--worker-class", choices=sorted(CLASSES), default="gthread", help="default %(default)s")
    parser.add_argument("--seed", help="decides which faults happen; default: another one each time")
    given = parser.parse_args(arguments)
    outcome = soak(
        seconds=given.seconds, workers=given.workers, worker_class=given.worker_class, seed=given.seed,
        say=lambda text: print(text, flush=True),
    )  # fmt: skip
    print(outcome.report())
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
