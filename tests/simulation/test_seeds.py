"""Drawn schedules on the real core: ``pytest --simulate-seeds N``. A failure is told, shrunk, as a timeline."""

import pytest

from coherent_cache.testing.simulation import search

SEEDS_PER_TEST = 500


def pytest_generate_tests(metafunc):
    total = metafunc.config.getoption("--simulate-seeds")
    starts = range(0, total, SEEDS_PER_TEST)
    metafunc.parametrize("seeds", [range(start, min(start + SEEDS_PER_TEST, total)) for start in starts], ids=str)


def test_no_drawn_schedule_breaks_a_promise(seeds):
    failure = search(seeds)
    if failure is not None:
        again = f"python -m coherent_cache.testing.simulation --replay {failure.schedule.seed}"
        pytest.fail(f"{failure.report}\n\nagain: {again}", pytrace=False)
