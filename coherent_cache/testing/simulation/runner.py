"""Runs seeds: finds a violation, shrinks it, tells it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from coherent_cache.testing.simulation.loop import Violation
from coherent_cache.testing.simulation.report import timeline
from coherent_cache.testing.simulation.schedule import Schedule, draw
from coherent_cache.testing.simulation.shrink import shrink
from coherent_cache.testing.simulation.world import World


@dataclass(frozen=True, slots=True)
class Failure:
    """A schedule that breaks a promise.

    Attributes:
        schedule: as it was drawn.
        shrunk: with as little in it as still breaks the same promise.
        violation: what it breaks.
        report: the shrunk schedule as a timeline, one line per step.
    """

    schedule: Schedule
    shrunk: Schedule
    violation: Violation
    report: str


def run(schedule: Schedule) -> None:
    """Run a schedule.

    Raises:
        Violation: the protocol broke a promise.
    """
    World(schedule).run()


def violation_of(schedule: Schedule) -> Violation | None:
    """Run a schedule; return what it breaks, None if nothing."""
    try:
        run(schedule)
    except Violation as violation:
        return violation
    return None


def explain(schedule: Schedule, violation: Violation) -> Failure:
    """Shrink a schedule that breaks a promise, and tell its story."""
    shrunk = shrink(schedule, violation.rule, violation_of)
    world = World(shrunk, trace=True)
    try:
        world.run()
    except Violation as error:
        violation = error
    return Failure(schedule, shrunk, violation, timeline(world, violation))


def replay(seed: int, profile: str | None = None) -> Failure | None:
    """Run the schedule that a seed draws; return its shrunk failure, None if it breaks nothing."""
    schedule = draw(seed, profile)
    violation = violation_of(schedule)
    return None if violation is None else explain(schedule, violation)


def search(
    seeds: Iterable[int], *, profile: str | None = None, on_progress: Callable[[int], None] | None = None
) -> Failure | None:
    """Run seeds until one breaks a promise; return its shrunk failure, None if none does.

    Args:
        seeds: what to run.
        profile: a kind of schedules; None for what each seed stands for.
        on_progress: called with each seed that broke nothing.
    """
    for seed in seeds:
        schedule = draw(seed, profile)
        violation = violation_of(schedule)
        if violation is not None:
            return explain(schedule, violation)
        if on_progress is not None:
            on_progress(seed)
    return None
