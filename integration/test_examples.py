"""The examples run as their page says, and notice what is not coherent."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from coherent_cache.remote.embedded import find_redis_server

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PAGE = (EXAMPLES / "README.md").read_text("utf-8")
COMMANDS = re.findall(r"^\| `\.venv/bin/python (examples/\w+\.py)` \|", PAGE, re.MULTILINE)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def run(*command):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COHERENT_CACHE_")}
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def check(done):
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "coherent"
    assert "Traceback" not in done.stderr
    assert done.stdout.count("  ok: ") >= 2


def test_the_page_names_every_example():
    programs = {path.name for path in EXAMPLES.glob("*.py") if "__main__" in path.read_text("utf-8")}
    assert {Path(command).name for command in COMMANDS} == programs
    for path in EXAMPLES.glob("*.py"):
        assert f"`{path.name}`" in PAGE or f"examples/{path.name}`" in PAGE


@pytest.mark.skipif(find_redis_server() is None, reason="needs a redis-server to start")
@pytest.mark.parametrize("program", COMMANDS)
def test_an_example_runs_with_one_command(program):
    check(run(program, "--seconds", "0.5"))


def test_an_example_takes_another_redis(redis_server):
    check(run("examples/multiprocessing_pool.py", "--url", redis_server.url, "--seconds", "0.1"))


def test_an_example_notices_what_is_not_coherent(redis_server, tmp_path):
    for path in EXAMPLES.glob("*.py"):
        text = path.read_text("utf-8")
        (tmp_path / path.name).write_text(text.replace('cache.set(f"rate:{currency}", rate, wait=10).confirmed', "0"))
    done = run(str(tmp_path / "multiprocessing_pool.py"), "--url", redis_server.url, "--seconds", "0.1")
    assert done.returncode == 1
    assert "NOT COHERENT" in done.stderr
