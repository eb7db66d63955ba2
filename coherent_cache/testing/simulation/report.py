"""Tells a run: one line per step, the time on the left, one column of indentation per process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coherent_cache.testing.simulation.loop import Violation

if TYPE_CHECKING:
    from coherent_cache.testing.simulation.world import World

_INDENT = 4


def timeline(world: World, violation: Violation | None) -> str:
    """Return the story of a run that was traced.

    Args:
        world: the run.
        violation: what it broke; None if nothing.
    """
    schedule = world.schedule
    columns: dict[str, int] = {}
    head = (
        f"seed {schedule.seed}: {len(schedule.steps)} steps, {schedule.processes} processes, "
        f"{schedule.shards} shards, preempt {schedule.preempt_chance}, drift {schedule.drift}, "
        f"log {schedule.log_length}, replay {schedule.replay_limit}"
    )
    lines = [head]
    for at, who, text in world.trace or ():
        column = columns.setdefault(who, len(columns))
        lines.append(f"{at:9.4f}  {' ' * (_INDENT * column)}{who:<3} {text}")
    if violation is not None:
        lines.append(f"{world.loop.now:9.4f}  VIOLATION of {violation}")
    lines.append("")
    lines.append("as a schedule:")
    lines.extend(f"    {step!r}," for step in schedule.steps)
    return "\n".join(lines)
