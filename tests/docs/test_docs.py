"""The documentation is true: code blocks run, links lead somewhere, the state diagram is the table's."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import structlog

from coherent_cache.core.states import TRANSITIONS

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


def blocks():
    """Yield the code blocks, but for those that are files of a test-suite: integration/test_plugin.py runs these."""
    for page in PAGES:
        text = page.read_text("utf-8")
        for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)):
            if not re.match(r"# \S+\.py\n", code):
                yield pytest.param(code, id=f"{page.relative_to(ROOT)}:{number}")


@pytest.fixture
def _logging_as_before():
    logger = logging.getLogger("coherent_cache")
    level = logger.level
    yield
    logger.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.usefixtures("_logging_as_before")
@pytest.mark.parametrize("code", list(blocks()))
def test_code_blocks_run(code):
    exec(compile(code, "<documentation>", "exec"), {"__name__": "documentation"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_internal_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"


def mermaid():
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield "    [*] --> CONNECTING"
    for old, row in TRANSITIONS.items():
        for trigger, new in row.items():
            if new is not old:
                yield f"    {old.name} --> {new.name}: {trigger.value}"
    yield "```"


def test_the_state_diagram_is_drawn_from_the_table():
    page = (ROOT / "docs/explanation/protocol.md").read_text("utf-8")
    assert "\n".join(mermaid()) in page
