"""The gate: with any one rule switched off the simulator must find a violation, or it would prove nothing."""

import pytest

from coherent_cache.testing.simulation import draw, violation_of
from tests.simulation.mutations import MUTATIONS, REDUNDANT
from tests.simulation.trails import TRAILS

BY_NAME = {mutation.name: mutation for mutation in MUTATIONS}


@pytest.mark.parametrize("mutation", [each for each in MUTATIONS if each.seeds], ids=lambda mutation: mutation.name)
def test_drawn_schedules_find_a_rule_that_is_switched_off(mutation):
    with mutation.applied():
        assert any(violation_of(draw(seed, mutation.profile)) for seed in range(mutation.seeds)), mutation.rule


def test_every_rule_is_shown_by_something():
    assert {mutation.name for mutation in MUTATIONS if not mutation.seeds} <= set(TRAILS)


@pytest.mark.parametrize("name", TRAILS)
def test_a_trail_is_safe(name):
    assert violation_of(TRAILS[name]) is None


@pytest.mark.parametrize("name", TRAILS)
def test_a_trail_needs_its_rule(name):
    with BY_NAME[name].applied():
        assert violation_of(TRAILS[name]) is not None, BY_NAME[name].rule


@pytest.mark.parametrize("mutation", REDUNDANT, ids=lambda mutation: mutation.name)
def test_a_rule_that_others_make_up_for_breaks_nothing(mutation):
    """Each says in ``rule`` why. Should one be found some day, it belongs among the others."""
    with mutation.applied():
        for seed in range(mutation.seeds):
            assert violation_of(draw(seed, mutation.profile)) is None
