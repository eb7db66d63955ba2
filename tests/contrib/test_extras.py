"""An adapter without its framework says which extra to install; nothing else needs any of them."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT = """
import importlib, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[2].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
importlib.import_module(sys.argv[1])
"""

FRAMEWORKS = "django,flask,werkzeug,starlette,fastapi,dogpile,cachetools"


def import_without(module, blocked=FRAMEWORKS):
    command = [sys.executable, "-c", WITHOUT, module, blocked]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("extra", ["django", "flask", "starlette", "fastapi", "dogpile"])
def test_the_error_names_the_extra(extra):
    done = import_without(f"coherent_cache.contrib.{extra}")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: No module named")
    assert f"pip install 'coherent-cache[{extra}]'" in last


@pytest.mark.parametrize("module", ["coherent_cache", "coherent_cache.cache", "coherent_cache.contrib.cachetools"])
def test_what_needs_no_framework(module):
    assert import_without(module).returncode == 0
