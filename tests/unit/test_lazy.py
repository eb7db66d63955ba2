"""The packages that pytest imports with the plugin: light, and with the same names as ever."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import coherent_cache
import coherent_cache.testing

PACKAGES = ("coherent_cache", "coherent_cache.testing")
ALLOWED = {
    "coherent_cache",
    "coherent_cache.__about__",
    "coherent_cache.lazy",
    "coherent_cache.testing",
    "coherent_cache.testing.plugin",
}


def imported_for_types(package):
    """Name and home of what a package imports for type checkers alone."""
    tree = ast.parse(Path(importlib.import_module(package).__file__).read_text("utf-8"))
    for block in tree.body:
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name):
            for statement in block.body:
                for alias in statement.names:
                    yield alias.name, statement.module


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there_and_is_what_type_checkers_see(package):
    module = importlib.import_module(package)
    typed = dict(imported_for_types(package))
    assert set(typed) == set(module.__all__) - {"__version__"}
    for name, home in typed.items():
        assert getattr(module, name) is getattr(importlib.import_module(home), name)


@pytest.mark.parametrize("package", PACKAGES)
def test_other_names_are_missing_as_ever(package):
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'Clock'"):
        importlib.import_module(package).Clock  # noqa: B018
    with pytest.raises(ImportError):
        exec(f"from {package} import Clock")


def test_a_name_is_looked_for_once(monkeypatch):
    monkeypatch.delitem(vars(coherent_cache), "Version", raising=False)
    found = coherent_cache.Version
    assert vars(coherent_cache)["Version"] is found


def test_the_plugin_costs_pytest_next_to_nothing():
    code = "import sys, pytest; before = set(sys.modules); import coherent_cache.testing.plugin; "
    code += "print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    own = {name for name in done.stdout.split() if name.startswith("coherent_cache")}
    assert own == ALLOWED
    assert not set(done.stdout.split()) & {"redis", "hiredis", "msgpack", "structlog", "fakeredis", "asyncio"}
