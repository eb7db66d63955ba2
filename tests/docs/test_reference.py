"""Pages that are made of the code are up to date."""

from __future__ import annotations

import re
import runpy
from dataclasses import fields
from pathlib import Path

from coherent_cache.events import catalogue

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def test_the_page_of_events_is_what_the_docstrings_say():
    made = runpy.run_path(str(REFERENCE / "make_events.py"))["page"]()
    assert (REFERENCE / "events.md").read_text("utf-8") == made, "run python docs/reference/make_events.py"


def test_the_page_of_events_explains_every_field():
    page = (REFERENCE / "events.md").read_text("utf-8")
    for kind in catalogue():
        _, _, section = page.partition(f"\n## {kind.name}\n")
        section = section.partition("\n## ")[0]
        assert f"`coherent_cache.events.{kind.__name__}`" in section
        assert re.findall(r"^\| `(\w+)` \| \S.* \| \S.* \|$", section, re.MULTILINE) == [
            field.name for field in fields(kind)
        ]
