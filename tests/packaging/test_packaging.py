"""What is built can be installed, into an empty environment of each supported Python that this machine has."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VERSIONS = ["3.11", "3.12", "3.13"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COHERENT_CACHE_"))}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(*command, **options):
    done = subprocess.run(
        [str(each) for each in command],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def interpreter(version):
    """Return a Python of this version, or None."""
    known = [
        shutil.which(f"python{version}"),
        *sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python")),
    ]
    if sys.version.startswith(version + "."):
        known.insert(0, sys.executable)
    for candidate in filter(None, known):
        asked = subprocess.run(
            [candidate, "-c", "import sys, venv, ensurepip; print(sys.version)"], capture_output=True, check=False
        )
        if asked.returncode == 0 and asked.stdout.startswith(version.encode() + b"."):
            return candidate
    return None


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """Build the sdist, and the wheel out of the sdist, as a package index would get them."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


@pytest.mark.parametrize("version", VERSIONS)
def test_the_wheel_works_in_an_empty_environment(distributions, tmp_path, version):
    python = interpreter(version)
    if python is None:
        assert not sys.version.startswith(version), "at least the Python of this run is there"
        pytest.skip(f"no Python {version} with venv on this machine")
    run(python, "-m", "venv", tmp_path / "venv")
    own = tmp_path / "venv/bin/python"
    run(own, "-m", "pip", "install", "--quiet", f"coherent-cache[memory] @ {distributions[1].as_uri()}")

    told = json.loads(run(own, "-I", ROOT / "tests/packaging/smoke.py", cwd=tmp_path))

    assert told["value"] == {"n": 1}
    assert told["typed"]
    assert told["scripts"]
    assert "exit codes" in told["help"].lower()
    assert told["import"] < 2
    about = told["metadata"]
    assert about["Version"] == [told["version"]]
    assert about["License-Expression"] == ["MIT"]
    assert about["Requires-Python"] == [">=3.11"]
    assert f"Programming Language :: Python :: {version}" in about["Classifier"]


def test_the_sdist_brings_its_tests_and_docs_and_nothing_of_the_machine(distributions):
    with tarfile.open(distributions[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "mkdocs.yml", ".ci/run"} <= names
    assert {name.split("/")[0] for name in names if "/" in name} == {
        ".ci", "coherent_cache", "tests", "integration", "benchmarks", "docs", "examples", "compose",
    } & ({path.name for path in ROOT.iterdir() if path.is_dir() and any(path.iterdir())})  # fmt: skip
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".so"))]
