"""The benchmarks' own arithmetic: what is compared with what, what is within a limit, what is printed."""

from __future__ import annotations

import importlib
import json
import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SHARED = ("measure", "server", "peers", "bench")
QUESTIONS = (
    "local_hit",
    "async_hit",
    "set_value",
    "miss",
    "get_many",
    "propagation",
    "subscriber",
    "memory",
    "round_trip",
    "events",
    "tail",
)


@pytest.fixture(scope="module")
def load():
    """Import a file of the benchmarks, as running it by hand does; no trace of it stays."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(FOLDER))
        for name in {*SHARED, *QUESTIONS, "run"} - before:
            sys.modules.pop(name, None)


@pytest.fixture
def measure(load):
    return load("measure")


@pytest.fixture
def bench(load):
    return load("bench")


@pytest.fixture
def run(load):
    return load("run")


def row(measure, **fields):
    return measure.Row(**({"question": "set", "case": "default cache", "value": 60.0, "unit": "us"} | fields))


class TestInterleave:
    def test_every_round_begins_with_another_subject(self, measure):
        order = []

        def subject(name):
            def run():
                order.append(name)
                return float(len(order))

            return run

        taken = measure.interleave({name: subject(name) for name in "abc"}, 4)
        assert "".join(order[3:]) == "abcbcacababc"
        assert taken == {"a": [4.0, 9.0, 11.0, 13.0], "b": [5.0, 7.0, 12.0, 14.0], "c": [6.0, 8.0, 10.0, 15.0]}


class TestCompare:
    def test_the_ratio_is_the_median_of_the_rounds_own_ratios(self, measure):
        # The machine became three times slower half-way: no ratio changed by that.
        made = measure.compare("set", "x", [2e-6, 2e-6, 6e-6], "SET", [1e-6, 1e-6, 3e-6], unit="us", limit=1.35)
        assert made.ratio == pytest.approx(2.0)
        assert made.spread == pytest.approx((2.0, 2.0))
        assert (made.value, made.reference_value) == pytest.approx((2.0, 1.0))
        assert made.verdict == "OVER"

    def test_units(self, measure):
        assert measure.compare("q", "c", [3e-9], "r", [1e-9], unit="ns").value == pytest.approx(3.0)
        assert measure.compare("q", "c", [3e-3], "r", [1e-3], unit="ms").value == pytest.approx(3.0)
        assert measure.compare("q", "c", [300.0], "r", [100.0], unit="/s").value == pytest.approx(300.0)

    def test_series_of_different_rounds_cannot_be_compared(self, measure):
        with pytest.raises(ValueError, match="zip"):
            measure.compare("q", "c", [1.0, 2.0], "r", [1.0], unit="us")


@pytest.mark.parametrize(("numbers", "expected"), [([1.0], (1.0, 1.0)), ([1.0, 2.0, 3.0, 4.0, 5.0], (2.0, 4.0))])
def test_quartiles(measure, numbers, expected):
    assert measure.quartiles(numbers) == expected


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 1), (0.5, 3), (0.99, 4), (1.0, 4)])
def test_percentile(measure, fraction, expected):
    assert measure.percentile([4, 2, 1, 3], fraction) == expected


class TestRow:
    @pytest.mark.parametrize(
        ("ratio", "limit", "verdict"), [(1.3, 1.35, "ok"), (1.35, 1.35, "ok"), (1.36, 1.35, "OVER"), (9.9, None, "")]
    )
    def test_verdict(self, measure, ratio, limit, verdict):
        assert row(measure, ratio=ratio, limit=limit).verdict == verdict

    def test_without_a_reference_the_value_itself_has_the_limit(self, measure):
        assert row(measure, value=0, limit=0).verdict == "ok"
        assert row(measure, value=1, limit=0).verdict == "OVER"

    def test_a_quick_run_tolerates_more(self, measure):
        assert row(measure, ratio=2.9, limit=1.5).holds(2.0)
        assert not row(measure, ratio=3.1, limit=1.5).holds(2.0)

    def test_survives_json(self, measure, run):
        made = row(measure, ratio=1.2, spread=(1.1, 1.3), limit=1.35, reference="SET", reference_value=50.0)
        text = json.dumps(asdict(made) | {"verdict": made.verdict})
        assert run.row_of(json.loads(text)) == made


class TestReport:
    @pytest.mark.parametrize(
        ("value", "unit", "text"),
        [(48.123, "us", "48.1 us"), (1234.5, "us", "1,234 us"), (0.5, "ms", "0.5 ms"), (9876.0, "/s", "9,876/s")],
    )
    def test_quantity(self, bench, value, unit, text):
        assert bench.quantity(value, unit) == text

    def test_plain_table(self, measure, bench):
        lines = [
            bench.cells(row(measure, ratio=1.2, spread=(1.1, 1.3), limit=1.35, reference="SET", reference_value=50))
        ]
        head, rule, line = bench.plain_table(lines).splitlines()
        assert head.split() == [word for column in bench.COLUMNS for word in column.split()]
        assert set(rule) == {"-", " "}
        assert line.split() == [
            "set",
            "default",
            "cache",
            "60",
            "us",
            "SET",
            "50",
            "us",
            "1.20",
            "1.10-1.30",
            "1.35",
            "ok",
        ]

    @pytest.mark.parametrize(
        ("beyond", "quick", "code"), [(0.99, False, 0), (1.5, False, 1), (1.5, True, 0), (99.0, True, 1)]
    )
    def test_exit_code(self, measure, bench, tmp_path, capsys, beyond, quick, code):
        target = tmp_path / "folder" / "figures.json"
        rows = [row(measure, ratio=1.35 * beyond, limit=1.35)]
        assert bench.finish({"rows": []}, rows, Namespace(quick=quick, json=target)) == code
        assert json.loads(target.read_text()) == {"rows": []}
        assert ("over the limit: set: default cache" in capsys.readouterr().out) is bool(code)

    def test_says_nothing_about_where_it_ran(self, measure, bench, monkeypatch):
        monkeypatch.setattr(bench, "describe", lambda url: {"version": "7.0.15", "reached_by": "redis"})
        monkeypatch.setattr(sys, "argv", ["/home/somebody/benchmarks/run.py", "--url", "redis://:secret@host/0"])
        report = bench.document([row(measure)], "redis://:secret@host/0", quick=True)
        text = json.dumps(report)
        assert report["command"] == "python benchmarks/run.py --quick"
        assert report["versions"]["coherent-cache"]
        assert report["rows"][0]["case"] == "default cache"
        assert not [word for word in ("somebody", "secret", "@host", str(FOLDER)) if word in text]


class TestCommandLine:
    def test_every_question_is_a_file_of_its_own_with_a_measure(self, run, load):
        assert run.QUESTIONS == QUESTIONS
        for name in QUESTIONS:
            assert callable(load(name).measure), name

    def test_only_takes_known_names(self, bench, run):
        assert bench.parse_options(["--only", "miss", "memory"], run.QUESTIONS).only == ["miss", "memory"]
        with pytest.raises(SystemExit):
            bench.parse_options(["--only", "nonsense"], run.QUESTIONS)


def test_system_calls_are_counted_between_the_marks_of_the_main_thread(load):
    local_hit = load("local_hit")
    trace = [
        "10 execve(...) = 0",
        f'10 newfstatat(AT_FDCWD, "{local_hit.BEGIN}", ...) = -1 ENOENT',
        "10 getpid() = 10",
        "11 sendto(3, ...) = 5",
        "10 futex(0x1, FUTEX_WAKE_PRIVATE, 1) = 1",
        f'10 newfstatat(AT_FDCWD, "{local_hit.END}", ...) = -1 ENOENT',
        "10 exit_group(0) = ?",
    ]
    assert local_hit.count_between(trace) == 1
