"""Servers inside this process for adapters that make their caches themselves; nothing is left of them."""

from __future__ import annotations

import gc
import secrets
import threading

import pytest

from coherent_cache.remote.memory import forget_server


@pytest.fixture
def name():
    """Give the name of a server that no other test has."""
    name = secrets.token_hex(8)
    yield name
    forget_server(name)


@pytest.fixture
def url(name):
    return f"memory://{name}"


@pytest.fixture(autouse=True, scope="module")
def _no_cache_is_left():
    before = set(threading.enumerate())
    yield
    gc.collect()  # a cache that nobody has any more is closed
    left = set(threading.enumerate()) - before
    assert not [thread.name for thread in left if thread.name.startswith("coherent-cache")]
