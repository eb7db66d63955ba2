"""How the benchmarks measure: interleaved rounds, a ratio per round, the median of those.

The machines that run them switch between fast and slow states and have other work to do, so that absolute times, and
ratios of times that were not taken side by side, mean little. A *subject* is a function that runs one batch and returns
the seconds per call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any, Final

Subject = Callable[[], float]

SETTLE: Final = 0.004
"""Seconds before a batch that talks to Redis: the work that the batch before it left to threads and peers is done."""

QUICK_TOLERANCE: Final = 4.0
"""A quick run fails beyond the limit times this: the machines of a CI are noisy."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        question: name of the benchmark.
        case: what was measured.
        value: median of what was measured, in ``unit``.
        unit: ``ns``, ``us``, ``ms``, ``/s``, ``bytes``, ``calls``.
        reference: what it was compared with; empty if with nothing.
        reference_value: median of that, in ``unit``.
        ratio: median over the rounds of value / reference value.
        spread: lower and upper quartile of these.
        limit: most that the ratio (or, without a reference, the value) may be; None for no limit.
    """

    question: str
    case: str
    value: float
    unit: str
    reference: str = ""
    reference_value: float | None = None
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    limit: float | None = None

    def holds(self, tolerance: float = 1.0) -> bool:
        """Tell whether the limit, if there is one, is kept."""
        measured = self.value if self.ratio is None else self.ratio
        return self.limit is None or measured <= self.limit * tolerance

    @property
    def verdict(self) -> str:
        """``ok``, ``OVER`` or nothing."""
        return "" if self.limit is None else "ok" if self.holds() else "OVER"


def interleave(subjects: Mapping[str, Subject], rounds: int) -> dict[str, list[float]]:
    """Run every subject once per round; return their seconds per call, round by round.

    Each round begins with another subject, so that none always runs after the same other one.
    """
    names = list(subjects)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for subject in subjects.values():  # warm up
        subject()
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            taken[name].append(subjects[name]())
    return taken


def compare(
    question: str,
    case: str,
    values: Sequence[float],
    reference: str,
    reference_values: Sequence[float],
    *,
    unit: str,
    limit: float | None = None,
) -> Row:
    """Make a row of two series that were taken in the same rounds, in seconds (or in whatever ``unit`` is else)."""
    scale = {"ns": 1e9, "us": 1e6, "ms": 1e3}.get(unit, 1)
    ratios = [value / base for value, base in zip(values, reference_values, strict=True)]
    return Row(
        question, case, median(values) * scale, unit, reference, median(reference_values) * scale,
        median(ratios), quartiles(ratios), limit,
    )  # fmt: skip


def quartiles(numbers: Sequence[float]) -> tuple[float, float]:
    """Return the lower and the upper quartile."""
    if len(numbers) < 2:
        return numbers[0], numbers[0]
    low, _, high = quantiles(numbers, n=4, method="inclusive")
    return low, high


def percentile(numbers: Sequence[float], fraction: float) -> float:
    """Return the number that this fraction of them lies below."""
    ordered = sorted(numbers)
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


def batch(
    call: Callable[[Any], object], arguments: Iterable[Any], *, before: Callable[[], object] | None = None
) -> Subject:
    """Return a subject that calls ``call`` with each argument in turn and times the batch as a whole.

    Args:
        call: what is measured.
        arguments: one per call.
        before: done before each batch, not timed.
    """
    arguments = list(arguments)

    def subject() -> float:
        if before is not None:
            before()
        time.sleep(SETTLE)
        started = time.perf_counter()
        for argument in arguments:
            call(argument)
        return (time.perf_counter() - started) / len(arguments)

    return subject


def one_by_one(call: Callable[[], object], times: int, *, before: Callable[[], object]) -> Subject:
    """Return a subject that times each call by itself, after ``before``, which is not timed."""

    def subject() -> float:
        total = 0.0
        time.sleep(SETTLE)
        for _ in range(times):
            before()
            started = time.perf_counter()
            call()
            total += time.perf_counter() - started
        return total / times

    return subject
