"""The public surface is typed as ``api.py`` says, and the adapters as ``adapters.py`` does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import coherent_cache

SURFACE = [Path(__file__).with_name(name) for name in ("api.py", "adapters.py")]


@pytest.mark.timeout(600)
def test_the_public_surface_is_typed(tmp_path):
    pytest.importorskip("mypy")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}", *SURFACE],
        env=os.environ | {"MYPYPATH": str(Path(coherent_cache.__file__).parents[1])}, cwd=tmp_path,
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_is_typed_for_pyright_too(tmp_path):
    pytest.importorskip("basedpyright")
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "standard"}')
    package = Path(coherent_cache.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--level", "error", "--pythonpath", sys.executable, "-p", tmp_path,
         *SURFACE],
        env=os.environ | {"PYTHONPATH": str(package)}, cwd=package,
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
