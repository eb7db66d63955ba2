"""The formal models: all that they can switch off is checked, the page tells all of it, and the checker can fail.

The run that counts is ``docs/model/check.sh --quick``, a step of CI of its own. Here only the smallest variant is run.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

MODELS = Path(__file__).parents[2] / "docs/model"
BOUNDS = {"CHECK", "NR", "WMAX", "RMAX", "DMAX", "SMAX", "LMAX", "QL", "W0", "W1", "OTHER", "FOLLOW"}
SMALLEST = "^coherence:TOKEN_LATE$"


def check(*arguments, folder=MODELS):
    return subprocess.run(
        [folder / "check.sh", *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


def runs(*arguments):
    """Return what would be run: model, property, what is switched off, its rule, what is expected, bounds."""
    return [line.split(maxsplit=5) for line in check("--list", *arguments).stdout.splitlines()]


@pytest.mark.parametrize("arguments", [(), ("--quick",)], ids=["full", "quick"])
@pytest.mark.parametrize("model", ["coherence", "failover", "acknowledged"])
def test_every_rule_that_a_model_can_switch_off_is_switched_off(model, arguments):
    text = (MODELS / f"{model}.pml").read_text("utf-8")
    options = set(re.findall(r"^#ifn?def (\w+)", text, re.MULTILINE)) | set(re.findall(r"defined\((\w+)\)", text))

    mine = [(off, expected) for name, _, off, _, expected, _ in runs(*arguments) if name == model]
    assert {off for off, _ in mine if off != "-"} == options - BOUNDS
    assert ("-", "holds") in mine


@pytest.mark.parametrize("arguments", [(), ("--quick",)], ids=["full", "quick"])
def test_every_property_is_seen_to_hold_and_to_break(arguments):
    seen = {"holds": set(), "breaks": set(), "spare": set()}
    for model, checked, _, _, expected, _ in runs(*arguments):
        names = ("CONVERGE", "OWN_WRITE") if checked == "BOTH" else (checked,)
        seen[expected] |= {(model, name) for name in names}

    assert seen["holds"] == seen["breaks"]


def test_the_page_shows_a_result_of_every_run():
    page = [line.split() for line in (MODELS / "README.md").read_text("utf-8").splitlines()]
    for model, checked, off, rule, expected, bounds in runs():
        result = ["counterexample"] if expected == "breaks" else ["no", "error"]
        start, end = [model, checked, off, rule, *result], bounds.split()
        assert any(row[: len(start)] == start and row[-len(end) :] == end for row in page), (start, end)


@pytest.mark.skipif(shutil.which("spin") is None, reason="needs spin")
def test_what_breaks_without_its_rule_is_told_from_what_does_not(tmp_path):
    good = check("--only", SMALLEST)
    assert (good.returncode, good.stderr) == (0, "")
    assert "counterexample" in good.stdout
    assert "1 of 1 as expected" in good.stdout

    folder = shutil.copytree(MODELS, tmp_path / "model")
    text = (folder / "coherence.pml").read_text("utf-8")
    (folder / "coherence.pml").write_text(text.replace("TOKEN_LATE", "ANOTHER_NAME"))
    bad = check("--only", SMALLEST, folder=folder)
    assert bad.returncode == 1
    assert "no error" in bad.stdout
    assert "NOT AS EXPECTED" in bad.stdout
    assert "0 of 1 as expected" in bad.stdout

    (folder / "coherence.pml").write_text("no model")
    assert check("--only", SMALLEST, folder=folder).returncode == 1


def test_a_run_that_does_not_exist_is_refused():
    refused = check("--only", "^no:such$")
    assert refused.returncode == 2
    assert "nothing matches" in refused.stderr
