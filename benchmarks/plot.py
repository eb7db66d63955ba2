"""Draw the figures of a comparison as SVG, for light and dark pages: ``python benchmarks/plot.py FILE.json FOLDER``."""

from __future__ import annotations

import json
import sys
from html import escape
from math import ceil, floor, log10
from pathlib import Path
from typing import Any, Final

OURS: Final = "coherent-cache"
BAR: Final = 18
GAP: Final = 8
LABEL: Final = 230
WIDTH: Final = 760
TOP: Final = 44
STYLE: Final = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .title { font-size: 15px; font-weight: 600 }
  .grid { stroke: #d0d7de } .tick { font-size: 11px; fill: #656d76 }
  .bar { fill: #8c959f } .ours { fill: #0f766e }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .grid { stroke: #30363d } .tick { fill: #8d96a0 }
    .bar { fill: #6e7681 } .ours { fill: #2dd4bf }
  }
"""


def main() -> int:
    """Draw what the command line names."""
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    rows = json.loads(Path(sys.argv[1]).read_text("utf-8"))["rows"]
    folder = Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for case, bars, unit in groups(rows):
        path = folder / f"{case.replace(' ', '-').replace(',', '').replace('%', 'percent').lower()}.svg"
        path.write_text(draw(case, bars, unit), "utf-8")
        print(path)
    return 0


def groups(rows: list[dict[str, Any]]) -> list[tuple[str, list[tuple[str, float]], str]]:
    """Return the cases, each with its bars, the shortest first, and their unit.

    Ours has no row, it is what the others are compared with: it gets the median of the others' references.
    """
    cases: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault(row["case"].rpartition(": ")[0], []).append(row)
    found = []
    for case, members in cases.items():
        bars = [(row["case"].rpartition(": ")[2], row["value"]) for row in members]
        bars.append((OURS, members[0]["reference_value"]))
        found.append((case, sorted(bars, key=lambda bar: bar[1]), members[0]["unit"]))
    return found


def draw(case: str, bars: list[tuple[str, float]], unit: str) -> str:
    """Return a chart of horizontal bars on a logarithmic scale."""
    first = floor(log10(min(value for _, value in bars)))
    decades = max(1, ceil(log10(max(value for _, value in bars))) - first)
    height = TOP + len(bars) * (BAR + GAP) + 28

    def x(value: float) -> float:
        return LABEL + (log10(value) - first) / decades * (WIDTH - LABEL - 90)

    bottom = height - 24
    parts = [f'<text class="title" x="8" y="22">{escape(case)}: {unit} per call, shorter is better</text>']
    for step in range(decades + 1):
        at = x(10 ** (first + step))
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 8}" y2="{bottom}"/>')
        parts.append(
            f'<text class="tick" text-anchor="middle" x="{at:.1f}" y="{bottom + 15}">{10 ** (first + step):,g}</text>'
        )
    for number, (name, value) in enumerate(bars):
        y = TOP + number * (BAR + GAP)
        kind = "ours" if name.startswith(OURS) else "bar"
        middle = y + BAR - 5
        parts.append(f'<text text-anchor="end" x="{LABEL - 8}" y="{middle}">{escape(name)}</text>')
        parts.append(
            f'<rect class="{kind}" x="{LABEL}" y="{y}" width="{max(1.0, x(value) - LABEL):.1f}" height="{BAR}" rx="2"/>'
        )
        parts.append(f'<text x="{x(value) + 6:.1f}" y="{middle}">{value:,.3g}</text>')
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">\n'
        f"<style>{STYLE}</style>\n{body}\n</svg>\n"
    )


if __name__ == "__main__":
    sys.exit(main())
