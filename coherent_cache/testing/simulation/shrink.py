"""Shrinks a schedule to as little as still breaks the same promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from coherent_cache.testing.simulation.loop import Violation
from coherent_cache.testing.simulation.network import LOST
from coherent_cache.testing.simulation.schedule import Schedule, Step

MOST_RUNS: Final = 1500
"""Runs after which the smallest schedule so far must do."""


class _Shrinker:
    def __init__(self, schedule: Schedule, rule: str, violation_of: Callable[[Schedule], Violation | None]) -> None:
        self.best = schedule
        self._rule = rule
        self._violation_of = violation_of
        self._runs = 0

    def accept(self, candidate: Schedule) -> bool:
        """Keep a candidate if it breaks the same promise."""
        if candidate == self.best or self._runs >= MOST_RUNS:
            return False
        self._runs += 1
        violation = self._violation_of(candidate)
        if violation is None or violation.rule != self._rule:
            return False
        self.best = candidate
        return True

    def fewer_steps(self) -> None:
        """Leave out steps: halves first, then smaller and smaller parts."""
        size = max(1, len(self.best.steps) // 2)
        while True:
            at = 0
            while at < len(self.best.steps):
                steps = self.best.steps
                if not self.accept(self.best.with_steps(steps[:at] + steps[at + size :])):
                    at += size
            if size == 1:
                return
            size //= 2

    def simpler_world(self) -> None:
        """Do without what is random or unusual."""
        for change in (
            {"preempt_chance": 0.0}, {"drift": 0.0}, {"fixed": 0.001}, {"marks": (False,)}, {"wrapped": False},
            {"shards": 1}, {"buffer_limit": 1000}, {"max_entries": 10}, {"on_disconnect": "bypass"},
            {"log_length": 1000, "replay_limit": 100}, {"settle": False},
        ):  # fmt: skip
            self.accept(replace(self.best, **change))
        while self.best.processes > 1:
            steps = self.best.steps
            if any(step.slot == self.best.processes - 1 for step in steps):
                break
            if not self.accept(replace(self.best, processes=self.best.processes - 1)):
                break

    def simpler_steps(self) -> None:
        """Give each step the plainest delays that do."""
        for at in range(len(self.best.steps)):
            step = self.best.steps[at]
            for simpler in (
                step._replace(gap=0.0),
                step._replace(delays=(0.0, 0.001, 0.001)),
                step._replace(
                    delays=tuple([each if each >= LOST else round(each, 2) or 0.001 for each in step.delays])
                ),
            ):
                self._try(at, simpler)

    def _try(self, at: int, step: Step) -> None:
        steps = self.best.steps
        self.accept(self.best.with_steps((*steps[:at], step, *steps[at + 1 :])))


def shrink(schedule: Schedule, rule: str, violation_of: Callable[[Schedule], Violation | None]) -> Schedule:
    """Return the smallest schedule found that still breaks a promise.

    Args:
        schedule: one that does.
        rule: which promise.
        violation_of: runs a schedule.
    """
    shrinker = _Shrinker(schedule, rule, violation_of)
    before = None
    while before != shrinker.best:
        before = shrinker.best
        shrinker.fewer_steps()
        shrinker.simpler_world()
        shrinker.simpler_steps()
    return shrinker.best
