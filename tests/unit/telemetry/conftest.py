"""A cache on a server inside this process, for what is told about it."""

import pytest


@pytest.fixture
def coherent_cache_options():
    return {"instance_id": "worker-1", "namespace": "shop"}
