"""What the site takes from elsewhere: the README, the changelog, and the command line's own help."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from coherent_cache import config
from coherent_cache.cli.main import COMMANDS, main

ROOT = Path(__file__).parents[1]

NOT_ON_THE_SITE = re.compile(r"\[([^]]+)\]\((?!https?:|#|[a-z-]+(?:/[\w./-]+)?\.(?:md|svg|png))[^)]*\)")
"""A link from the root to what is neither a page nor a picture of the site."""


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Fill the pages that have no text of their own."""
    source = page.file.src_uri
    if source == "index.md":
        return _from_root("README.md")
    if source == "changelog.md":
        return _from_root("CHANGELOG.md")
    if source == "reference/cli.md":
        return markdown + "".join(_commands())
    return markdown


def on_page_content(html: str, **_: object) -> str:
    """Put a default's value where its name stands, and a plain name where a docstring has a role of Sphinx."""
    html = re.sub(r"<code>(DEFAULT_\w+)</code>", lambda found: f"<code>{getattr(config, found[1]):,}</code>", html)
    return re.sub(r":(?:class|meth|mod|func):(?=<code>)", "", html)


def _from_root(name: str) -> str:
    """Return a file of the root with its links as the site has them; what the site does not have loses its link."""
    text = (ROOT / name).read_text("utf-8").replace("](docs/", "](")
    text = text.replace("](CHANGELOG.md", "](changelog.md").replace("](README.md", "](index.md")
    return NOT_ON_THE_SITE.sub(r"\1", text)


def _commands() -> Iterator[str]:
    os.environ["COLUMNS"] = "100"
    for name in COMMANDS:
        told = io.StringIO()
        with redirect_stdout(told), suppress(SystemExit):
            main([name, "--help"])
        yield f"\n## {name}\n\n```text\n{told.getvalue()}```\n"
