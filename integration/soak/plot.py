"""The picture of a soak, as SVG made by hand: faults, states, hit rates and staleness over time."""

from __future__ import annotations

import itertools
import math
from html import escape
from typing import TYPE_CHECKING

from integration.soak.records import LOCAL
from integration.soak.report import lags, states_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from integration.soak.checker import Findings
    from integration.soak.records import History, Process

WIDTH, LEFT, RIGHT = 1200, 130, 24
INNER = WIDTH - LEFT - RIGHT
ROW = 11  # height of a kind of fault
COLOURS = {"coherent": "#bfe3c6", "suspect": "#f6dd8a", "connecting": "#c9d3ea", "disconnected": "#ee9a8f"}
INK, FAINT, RED, LINE = "#1d2733", "#7a8794", "#b3261e", "#155a8a"
STYLE = (
    f"text{{font:11px system-ui,sans-serif;fill:{INK}}} .t{{font-size:16px;font-weight:600}} "
    f".h{{font-weight:600;font-size:12px}} .f{{fill:{FAINT}}} .s{{font-size:9px}} .v{{fill:{RED}}}"
)


def make_plot(history: History, findings: Findings, *, seed: str) -> str:
    """Return the SVG."""
    return _Plot(history, findings, seed).draw()


class _Plot:
    def __init__(self, history: History, findings: Findings, seed: str) -> None:
        self._history = history
        self._findings = findings
        self._seed = seed
        self._parts: list[str] = []
        self._y = 0.0
        self._length = max(1e-9, history.ended - history.began)

    def draw(self) -> str:
        history = self._history
        wrong = len(self._findings.violations)
        self._y = 28
        self._text(16, self._y, f"Soak of {self._length:.0f} s, seed {self._seed}", "t")
        self._text(
            16, self._y + 18,
            f"{wrong} violations in {len(history.reads):,} reads and {len(history.writes):,} writes, "
            f"{len(history.faults)} faults", "v" if wrong else "f",
        )  # fmt: skip
        self._y += 40
        self._faults()
        self._axis()
        self._workers()
        self._distributions()
        height = self._y + 16
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" '
            f'viewBox="0 0 {WIDTH} {height:.0f}"><style>{STYLE}</style>'
            f'<rect width="100%" height="100%" fill="white"/>{"".join(self._parts)}</svg>\n'
        )

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _faults(self) -> None:
        """One row per kind of fault; a mark is as wide as the fault was long."""
        kinds = sorted({fault.name for fault in self._history.faults})
        top = self._y
        for row, kind in enumerate(kinds):
            y = top + ROW * row
            if row % 2 == 0:
                self._parts.append(f'<rect x="{LEFT}" y="{y:.1f}" width="{INNER}" height="{ROW}" fill="#f4f6f8"/>')
            self._text(LEFT - 6, y + 8, kind, "s", anchor="end")
        for fault in self._history.faults:
            losing = any(fault.began <= loss.began <= fault.ended for loss in self._history.losses)
            x = self._x(fault.began)
            width = max(2.0, self._x(fault.ended) - x)
            y = top + ROW * kinds.index(fault.name) + 1.5
            self._parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{ROW - 3}" '
                f'fill="{RED if losing else INK}" opacity="0.75">'
                f"<title>{escape(f'{fault.name} {fault.target} {fault.note}')}</title></rect>"
            )
        self._y += ROW * len(kinds) + 2
        if kinds:
            self._text(LEFT, self._y + 8, "red: data was lost meanwhile", "s f")
        self._y += 14

    def _axis(self) -> None:
        step = next(step for step in (5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 36000) if self._length / step <= 14)
        for at in range(0, int(self._length) + 1, step):
            x = LEFT + INNER * at / self._length
            self._text(x, self._y + 10, f"{at} s" if step < 60 else f"{at // 60} min", "s f", anchor="middle")
        self._y += 16

    def _workers(self) -> None:
        """Per place one row: the state as background, the hit rate as a line."""
        places: dict[str, list[str]] = {}
        for name in sorted(self._history.processes):
            places.setdefault(name.partition("-")[0], []).append(name)
        height = 44
        for place, names in places.items():
            top = self._y
            self._text(16, top + 16, place, "h")
            self._text(16, top + 30, f"{len(names)} lives" if len(names) > 1 else "1 life", "s f")
            self._text(LEFT - 6, top + 8, "100 %", "s f", anchor="end")
            self._text(LEFT - 6, top + height, "hits 0", "s f", anchor="end")
            for name in names:
                self._states(self._history.processes[name], top, height)
            for name in names:
                self._hits(self._history.processes[name], top, height)
            self._parts.append(
                f'<rect x="{LEFT}" y="{top:.1f}" width="{INNER}" height="{height}" fill="none" stroke="{FAINT}" '
                f'stroke-width="0.5"/>'
            )
            self._y += height + 8
        x = LEFT
        for state, colour in COLOURS.items():
            self._parts.append(f'<rect x="{x}" y="{self._y:.1f}" width="12" height="10" fill="{colour}"/>')
            self._text(x + 16, self._y + 9, state, "s")
            x += 90
        self._line(x, self._y + 5, x + 14, self._y + 5, LINE, 1.4)
        self._text(x + 18, self._y + 9, "hit rate, per second", "s")
        self._y += 30

    def _states(self, process: Process, top: float, height: float) -> None:
        if not process.samples:
            return
        changes = [(process.samples[0][0], "connecting"), *states_of(process), (process.samples[-1][0], "")]
        for (began, state), (ended, _) in itertools.pairwise(changes):
            x = self._x(began)
            width = max(0.8 if state != "coherent" else 0.0, self._x(ended) - x)
            self._parts.append(
                f'<rect x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height}" fill="{COLOURS[state]}"/>'
            )

    def _hits(self, process: Process, top: float, height: float) -> None:
        """The rate over steps of a second at least; a gap where nothing was read."""
        points: list[str] = []
        last = process.samples[0] if process.samples else None
        for moment, sample in process.samples:
            assert last is not None
            if moment - last[0] < max(1.0, self._length / 400) or moment > self._history.quiet:
                continue
            hits, misses = sample["hits"] - last[1]["hits"], sample["misses"] - last[1]["misses"]
            if hits + misses:
                y = top + height * (1 - hits / (hits + misses))
                points.append(f"{self._x(moment):.1f},{y:.1f}")
            last = (moment, sample)
        if points:
            self._parts.append(
                f'<polyline points="{" ".join(points)}" fill="none" stroke="{LINE}" stroke-width="1.2"/>'
            )

    def _distributions(self) -> None:
        """Three histograms side by side; the heights are logarithmic."""
        history, bound = self._history, self._history.max_staleness
        ages = [read.age for read in history.reads if read.tier == LOCAL and read.age is not None]
        stale = [age for age, _ in self._findings.staleness]
        top, width = self._y, (INNER - 2 * 60) / 3
        x = float(LEFT)
        self._histogram(x, top, width, "age bound of local reads, s", ages, bound * 1.1, mark=bound)
        x += width + 60
        self._histogram(
            x, top, width, f"true staleness of the {len(stale):,} outdated reads, s", stale, bound * 1.1, mark=bound
        )
        x += width + 60
        delays = lags(history)
        longest = max(1.0, delays[int(0.999 * len(delays))]) if delays else 1.0
        self._histogram(x, top, width, "propagation of messages, ms (up to p99.9)", delays, longest, mark=None)
        self._y += 170

    def _histogram(
        self,
        x: float,
        top: float,
        width: float,
        title: str,
        values: Sequence[float],
        longest: float,
        *,
        mark: float | None,
    ) -> None:
        bins, height = 44, 110
        counts = [0] * bins
        for value in values:
            counts[min(bins - 1, int(value / longest * bins))] += 1
        most = max([*counts, 1])
        self._text(x, top + 10, title, "h")
        base = top + 26 + height
        for at, number in enumerate(counts):
            if number:
                tall = height * math.log1p(number) / math.log1p(most)
                self._parts.append(
                    f'<rect x="{x + width * at / bins:.1f}" y="{base - tall:.1f}" width="{width / bins - 1:.1f}" '
                    f'height="{tall:.1f}" fill="{LINE}"><title>{number:,}</title></rect>'
                )
        self._line(x, base, x + width, base, FAINT, 0.8)
        self._text(x - 4, top + 32, f"{most:,}", "s f", anchor="end")
        self._text(x - 4, top + 43, "(log)", "s f", anchor="end")
        for part in (0.0, 0.5, 1.0):
            self._text(
                x + width * part,
                base + 13,
                f"{longest * part:,.0f}" if longest > 10 else f"{longest * part:.2f}",
                "s f",
                anchor="middle",
            )
        if mark is not None:
            at = x + width * mark / longest
            self._line(at, top + 20, at, base, RED, 1.2)
            self._text(at - 3, top + 26, "allowed", "s v", anchor="end")

    # -- elements ------------------------------------------------------------------------------------------------------

    def _x(self, moment: float) -> float:
        part = (moment - self._history.began) / self._length
        return LEFT + INNER * min(1.0, max(0.0, part))

    def _text(self, x: float, y: float, text: str, kind: str, *, anchor: str = "start") -> None:
        self._parts.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>')

    def _line(self, x1: float, y1: float, x2: float, y2: float, colour: str, width: float) -> None:
        self._parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'
        )
