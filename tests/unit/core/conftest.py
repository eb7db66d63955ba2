"""Fixtures of the core's unit tests."""

import pytest

from tests.unit.core.model import World


@pytest.fixture
def new_world():
    """Give a maker of worlds; each is checked at the end."""
    worlds = []

    def make(**options):
        worlds.append(World(**options))
        return worlds[-1]

    yield make
    for world in worlds:
        world.check()
