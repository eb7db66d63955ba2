"""The report of a soak: one page of text."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from integration.soak.records import AMBIGUOUS, CONFLICT, LOCAL, REFUSED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from integration.soak.checker import Findings
    from integration.soak.records import Fault, History, Process

CALM = 2.0  # seconds after the last fault in which what happens is its consequence
PERCENTILES = (0.5, 0.9, 0.99, 0.999, 1.0)


class Recovery(NamedTuple):
    """How one instance came through one fault.

    Attributes:
        process: the instance.
        needed: seconds from the fault's end until it was coherent again, 0 if it was so before the end; None if it was
            not when the next fault began, or had ended.
    """

    process: str
    needed: float | None


def percentile(values: Sequence[float], fraction: float) -> float:
    """Return a percentile of sorted values, nan if there are none."""
    return values[min(len(values) - 1, int(fraction * len(values)))] if values else float("nan")


def states_of(process: Process) -> list[tuple[float, str]]:
    """Return the states of an instance with the moments from which on it was in them."""
    return [(moment, fields["new"]) for moment, name, fields in process.events if name == "state_changed"]


def recoveries(history: History, fault: Fault, until: float) -> list[Recovery]:
    """Return the instances that a fault made doubt, and how long each needed."""
    found = []
    for name, process in history.processes.items():
        during = [(moment, state) for moment, state in states_of(process) if fault.began <= moment < until]
        if any(state != "coherent" for _, state in during) or (during and fault.name == "kill-worker"):
            # The first time after the end: a machine that stumbles later is another matter.
            after = [moment - fault.ended for moment, state in during if state == "coherent" and moment >= fault.ended]
            back_before = 0.0 if during[-1][1] == "coherent" else None
            found.append(Recovery(name, after[0] if after else back_before))
    return found


def outer(history: History) -> list[tuple[Fault, float]]:
    """Return the faults that happened in no other one, with the moment at which the next one began."""
    alone: list[Fault] = []
    for fault in sorted(history.faults, key=lambda fault: fault.began):
        if not alone or fault.began >= alone[-1].ended:
            alone.append(fault)
    ends = [fault.began for fault in alone[1:]] + [history.quiet + CALM]
    return list(zip(alone, ends, strict=False))  # no fault, one end


def hit_rate(history: History) -> float:
    """Return the part of the keys read that the local tiers served."""
    local = sum(read.tier == LOCAL for read in history.reads)
    return local / len(history.reads) if history.reads else 0.0


def totals(history: History) -> dict[str, int]:
    """Return the sums of the instances' last samples."""
    sums: Counter[str] = Counter()
    for process in history.processes.values():
        if process.samples:
            sums.update({name: value for name, value in process.samples[-1][1].items() if isinstance(value, int)})
    return dict(sums)


def lags(history: History) -> list[float]:
    """Return all propagation delays in milliseconds, sorted."""
    return sorted(
        lag for process in history.processes.values() for _, sample in process.samples for lag in sample["lags"]
    )


def make_report(history: History, findings: Findings, *, seed: str, shown: int = 10) -> str:
    """Return the report."""
    lines = [
        (
            f"Soak of {history.ended - history.began:.0f} s, seed {seed}: "
            f"{len(findings.violations)} violations in {len(history.reads):,} reads and {len(history.writes):,} writes"
        ),
        "",
        *_violations(findings, shown),
        *_counts(history, findings),
        *_staleness(history, findings),
        *_faults(history),
    ]
    return "\n".join(lines) + "\n"


def _violations(findings: Findings, shown: int) -> list[str]:
    if not findings.violations:
        return []
    kinds = Counter(violation.rule for violation in findings.violations)
    lines = ["Violations: " + ", ".join(f"{number} {rule}" for rule, number in kinds.most_common())]
    first: dict[str, list[Any]] = defaultdict(list)
    for violation in findings.violations:
        first[violation.rule].append(violation)
    each = max(1, shown // len(first))
    lines += [f"  {violation}" for violations in first.values() for violation in violations[:each]]
    return [*lines, ""]


def _counts(history: History, findings: Findings) -> list[str]:
    sums = totals(history)
    outcomes = Counter(write.outcome for write in history.writes)
    kinds = Counter(write.operation for write in history.writes)
    checked = findings.checked
    failed = sum(process.failed_reads for process in history.processes.values())
    delays = lags(history)
    return [
        f"reads        {hit_rate(history):.1%} local; {failed:,} failed (Redis away)",
        (
            f"writes       {outcomes['ok']:,} ok, {outcomes['none']:,} with nothing to do, "
            f"{outcomes[CONFLICT]:,} conflicts, {outcomes[REFUSED]:,} refused, "
            f"{outcomes[AMBIGUOUS]:,} of unknown outcome"
        ),
        f"             {', '.join(f'{name} {number:,}' for name, number in kinds.most_common())}",
        f"cas          {checked['compare-and-set won']:,} won, {checked['compare-and-set lost']:,} lost",
        f"acknowledged {checked['acknowledged writes']:,} writes that no later read may be older than",
        (
            f"instances    {len(history.processes)} processes, {sums.get('resyncs', 0):,} resyncs, "
            f"{sums.get('replays', 0):,} messages replayed, {sums.get('flushes', 0):,} flushes, "
            f"{sums.get('fills_refused', 0):,} fills refused, {sums.get('expirations', 0):,} entries expired"
        ),
        (
            f"messages     {sums.get('invalidations_received', 0):,} received, "
            f"{sums.get('invalidations_applied', 0):,} concerned something here"
        ),
        f"propagation  {_spread(delays, 'ms')}",
        f"in the end   {checked['entries in the end']} local entries compared with Redis",
        f"unjudged     {checked['reads of a value of unknown version']} reads of values of unknown version",
        f"excuses      {', '.join(f'{reason}: {number:,}' for reason, number in findings.excused.items()) or 'none'}",
        "",
    ]


def _staleness(history: History, findings: Findings) -> list[str]:
    local = sum(read.tier == LOCAL for read in history.reads)
    seen = sorted(age for age, _ in findings.staleness)
    bounded = [(age / allowed, age, allowed) for age, allowed in findings.staleness if allowed > 0]
    ages = sorted(read.age for read in history.reads if read.tier == LOCAL and read.age is not None)
    lines = [
        f"staleness    {len(seen):,} of {local:,} local reads returned something outdated: {_spread(seen, 's')}",
        f"age bound    {_spread(ages, 's')}; allowed {history.max_staleness} s",
    ]
    if bounded:
        part, age, allowed = max(bounded)
        lines.append(f"closest call {age:.3f} s of {allowed:.3f} s that the read allowed itself ({part:.0%})")
    return [*lines, ""]


def _spread(values: Sequence[float], unit: str) -> str:
    if not values:
        return "none"
    names = ["p50", "p90", "p99", "p99.9", "worst"]
    return (
        ", ".join(
            f"{name} {percentile(values, fraction):.3f}" for name, fraction in zip(names, PERCENTILES, strict=True)
        )
        + f" {unit}"
    )


def make_list(history: History) -> str:
    """Return the list of all faults, with how long each instance needed."""
    lines = ["begin     length    fault and target                             seconds until coherent again"]
    for fault, until in outer(history):
        inner = f" + {fault.note.rpartition('meanwhile ')[2]}" if "meanwhile" in fault.note else ""
        times = [
            f"{each.process} {'-' if each.needed is None else f'{each.needed:.2f}'}"
            for each in recoveries(history, fault, until)
        ]
        lines.append(
            f"{fault.began - history.began:7.1f} s {fault.ended - fault.began:6.2f} s  "
            f"{f'{fault.name}{inner} {fault.target}':44} {', '.join(times) or 'nobody doubted'}"
        )
    return "\n".join(lines) + "\n"


def _faults(history: History) -> list[str]:
    needed: dict[str, list[float]] = defaultdict(list)
    missing: Counter[str] = Counter()
    for fault, until in outer(history):
        back = recoveries(history, fault, until)
        needed[fault.name] += [each.needed for each in back if each.needed is not None]
        missing[fault.name] += sum(each.needed is None for each in back)
    kinds = Counter(fault.name for fault in history.faults)
    effects: Counter[str] = Counter()
    for fault in history.faults:
        effects[fault.name] += fault.effect
    lines = [
        "faults                    times  effect   seconds from a fault's end until coherent again",
        "                                          p50    worst   (-: not before the next fault, or the process ended)",
    ]
    for name, number in sorted(kinds.items()):
        values = sorted(needed[name])
        late = f"   {missing[name]} x -" if missing[name] else ""
        figures = f"{percentile(values, 0.5):6.2f} {values[-1]:7.2f}{late}" if values else f"  nobody doubted{late}"
        lines.append(f"  {name:22} {number:6} {effects[name]:7}  {figures}")
    return lines
