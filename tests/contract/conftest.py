"""The contract suite runs on every front. Each front is a factory of caches whose methods are plain calls."""

from __future__ import annotations

import secrets

import pytest

from tests.contract.fronts import FRONTS


@pytest.fixture(params=sorted(FRONTS))
def front(request):
    """A front; a test for one only names it: ``@pytest.mark.parametrize("front", ["sync"], indirect=True)``."""
    front = FRONTS[request.param]()
    yield front
    front.stop()


@pytest.fixture
def url():
    return f"memory://{secrets.token_hex(8)}"


@pytest.fixture
def make(front, url):
    """Make caches of one namespace, quick to notice things; all are closed at the end."""
    caches = []

    def make(**options):
        options = {"namespace": "contract", "heartbeat": 0.05, "max_staleness": 2.0} | options
        cache = front(options.pop("url", url), **options)
        caches.append(cache)
        assert cache.wait_ready(5)
        return cache

    yield make
    for cache in caches:
        cache.close()


@pytest.fixture
def cache(make):
    return make()
