"""The tutorial's steps, as they stand on the page, in an empty directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/tutorial.md"


def steps():
    """Return the page as one script: files are written where they are shown, commands run in the page's order."""
    script = ["set -eu", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]  # whatever fails, the server ends
    for language, code in re.findall(r"^```(sh|python)\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE):
        if language == "python":
            name = re.match(r"# (\S+\.py)\n", code)
            assert name is not None, "a block of Python is a file, and says its name"
            script.append(f"cat > {name[1]} <<'END_OF_FILE'\n{code}END_OF_FILE")
        else:
            script.append(code)
    return "\n".join(script)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_steps_of_the_tutorial_do_what_it_says(tmp_path):
    wheels = tmp_path / "wheels"
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, ROOT]
    subprocess.run(build, check=True, timeout=120)
    folder = tmp_path / "shop"
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COHERENT_", "PYTHON"))}
    # As if this version were on the package index.
    environment |= {"PIP_FIND_LINKS": str(wheels), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-m", "-c", steps()],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    for worker in ("one", "two"):
        told = re.search(
            rf"^{worker}: saw (\[.*\]) in ([\d,]+) reads, hit rate ([\d.]+), state (\w+)$", done.stdout, re.MULTILINE
        )
        assert told is not None, done.stdout
        assert told[1] == "[10, 12]"
        assert int(told[2].replace(",", "")) > 1000
        assert float(told[3]) > 0.99
        assert told[4] == "coherent"
    assert re.search(r"^12 from the (local|redis) tier", done.stdout, re.MULTILINE)
    assert "nobody can read anything older now: True" in done.stdout
