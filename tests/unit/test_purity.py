"""The core imports no I/O, thread, clock or logging (house rule): checked in an interpreter of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

import coherent_cache

PACKAGE = Path(coherent_cache.__file__).parent
BLOCKED = (
    "asyncio",
    "hiredis",
    "logging",
    "os",
    "redis",
    "select",
    "selectors",
    "socket",
    "ssl",
    "structlog",
    "threading",
    "time",
)

CHECK = """
import builtins, importlib, pkgutil, sys, types

package, blocked = sys.argv[1], set(sys.argv[2].split(","))

# The package's front imports everything: without it, modules of the core bring in only what they import themselves.
front = types.ModuleType("coherent_cache")
front.__path__ = [package]
sys.modules["coherent_cache"] = front
real_import = builtins.__import__


def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {}).get("__name__", "")
    if importer.startswith("coherent_cache") and level == 0 and name.partition(".")[0] in blocked:
        raise ImportError(f"{importer} imports {name}")
    return real_import(name, globals, locals, fromlist, level)


builtins.__import__ = guarded
core = importlib.import_module("coherent_cache.core")
names = [module.name for module in pkgutil.iter_modules(core.__path__, "coherent_cache.core.")]
for name in names:
    importlib.import_module(name)
reached = {name for name in sys.modules if name.startswith("coherent_cache.")}
print(*sorted(reached))
"""


def reached_by(package):
    """Import the core of a package in a new interpreter; return what it reached, or the error's last line."""
    command = [sys.executable, "-I", "-c", CHECK, str(package), ",".join(BLOCKED)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.split() if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def test_the_core_is_pure():
    reached = reached_by(PACKAGE)
    assert {f"coherent_cache.core.{name}" for name in ("shard", "session", "operations")} <= set(reached)
    impure = ("cache", "cli", "logs", "remote", "runtime")
    assert not [name for name in reached if name.removeprefix("coherent_cache.").startswith(impure)]


@pytest.mark.parametrize(
    "statement",
    ["import time", "from threading import Lock", "import redis.asyncio", "from os import path", "import socket as s"],
)
@pytest.mark.parametrize("module", ["core/shard.py", "core/fresh.py", "wire.py"])
def test_the_check_notices_an_impure_import(tmp_path, statement, module):
    package = tmp_path / "coherent_cache"
    for source in PACKAGE.rglob("*.py"):
        target = package / source.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    impure = package / module
    future = "from __future__ import annotations\n"
    text = impure.read_text() if impure.exists() else future
    impure.write_text(text.replace(future, f"{future}{statement}\n", 1))
    assert reached_by(package).startswith("ImportError: coherent_cache.")
