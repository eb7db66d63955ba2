"""The pytest plugin: fixtures for tests of code that uses a cache.

================================  ======================================================================================
``coherent_cache_memory``         a ready cache on a server inside this process; nothing to install but the extra
``coherent_cache_factory``        makes further caches of the test's namespace, there or at a real Redis
``coherent_cache_url``            the real Redis under test; override it, or ``pytest --coherent-cache-url URL``
``fault_proxy``                   a :class:`~coherent_cache.testing.FaultProxy` in front of that Redis
``fleet``                         starts real processes with a cache each, connected through the fault proxy
``coherent_cache_namespace``      the test's namespace, which no other test has
``coherent_cache_options``        options of all these caches; override it, or mark a test
================================  ======================================================================================

``@pytest.mark.coherent_cache(ttl=None, max_entries=10)`` gives options to the caches of one test. Everything is closed
at the end of the test, and what a namespace has left in a real Redis is removed.

This module is imported wherever pytest starts, so it imports nothing but pytest; fixtures import what they need.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from coherent_cache import CoherentCache
    from coherent_cache.testing import FaultProxy, Fleet

READY_SECONDS = 10.0  # until a new cache must be coherent
TEST_OPTIONS: dict[str, Any] = {"heartbeat": 0.1}  # a test does not wait a second for what it has caused
NO_SERVER = (
    "coherent_cache_url: this test needs a Redis, and there is no redis-server on this machine. Install one (Debian, "
    "Ubuntu: apt-get install redis-server; macOS: brew install redis; up to CPython 3.12: pip install "
    "'coherent-cache[embedded]'), or name one: pytest --coherent-cache-url redis://host:6379/15, "
    "or override the fixture coherent_cache_url in conftest.py"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--coherent-cache-url``."""
    parser.getgroup("coherent-cache").addoption(
        "--coherent-cache-url",
        metavar="URL",
        help="the Redis that the fixtures fault_proxy and fleet use: redis://host:port/db or unix:///path/to/socket "
        "(default: a private redis-server, started when it is first needed)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers", "coherent_cache(**options): options of the caches that coherent-cache's fixtures make for this test"
    )


@pytest.fixture(scope="session")
def coherent_cache_url(pytestconfig: pytest.Config) -> Iterator[str]:
    """Give the URL of the real Redis under test: ``redis://`` or ``unix://``. Override it to bring another one.

    Without ``--coherent-cache-url`` a private redis-server, on a socket that nobody else can open, for the session
    (with pytest-xdist: one per worker process).
    """
    url: str | None = pytestconfig.getoption("coherent_cache_url")
    if url is not None:
        yield url
        return
    from coherent_cache.remote.embedded import embedded_server, find_redis_server  # noqa: PLC0415

    if find_redis_server() is None:
        pytest.fail(NO_SERVER, pytrace=False)
    with embedded_server(f"pytest-{os.getpid()}") as server:
        yield server.url


@pytest.fixture
def coherent_cache_options() -> dict[str, Any]:
    """Give options of all caches that the other fixtures make; override it to have your application's."""
    return {}


@pytest.fixture
def coherent_cache_namespace(request: pytest.FixtureRequest) -> Iterator[str]:
    """Give a namespace that no other test uses, readable in a dump. What it leaves in the real Redis is removed."""
    real = "coherent_cache_url" in request.fixturenames
    url: str | None = request.getfixturevalue("coherent_cache_url") if real else None
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", request.node.name)[:40]
    namespace = f"{name}-{secrets.token_hex(4)}"  # not random: plugins seed that alike for every test
    yield namespace
    if url is not None:
        from contextlib import suppress  # noqa: PLC0415

        from coherent_cache.errors import CacheUnavailable  # noqa: PLC0415
        from coherent_cache.remote.faults import remove_namespace  # noqa: PLC0415

        with suppress(CacheUnavailable):  # the test may have ended it
            remove_namespace(url, namespace)


@pytest.fixture
def _coherent_cache_defaults(request: pytest.FixtureRequest, coherent_cache_options: dict[str, Any]) -> dict[str, Any]:
    """Join the options: a test's own marker counts more than its class' and module's, those more than the fixture's."""
    options = TEST_OPTIONS | coherent_cache_options
    for marker in reversed(list(request.node.iter_markers("coherent_cache"))):
        if marker.args:
            pytest.fail("the marker coherent_cache takes options by name, as in coherent_cache(ttl=60)", pytrace=False)
        options |= marker.kwargs
    return options


@pytest.fixture
def coherent_cache_factory(
    coherent_cache_namespace: str, _coherent_cache_defaults: dict[str, Any]
) -> Iterator[Callable[..., CoherentCache]]:
    """Give a maker of ready caches of the test's namespace; they are closed at the end.

    ``make(url=None, *, ready=True, **options)``: without a URL they are on the test's server inside this process;
    ``ready=False`` does not wait for the connection.
    """
    from coherent_cache import CacheUnavailable, CoherentCache  # noqa: PLC0415
    from coherent_cache.remote.memory import forget_server  # noqa: PLC0415

    made: list[CoherentCache] = []

    def make(url: object = None, *, ready: bool = True, **options: Any) -> CoherentCache:
        where = f"memory://{coherent_cache_namespace}" if url is None else url
        cache = CoherentCache(where, **{"namespace": coherent_cache_namespace, **_coherent_cache_defaults, **options})
        made.append(cache)
        if ready and not cache.wait_ready(READY_SECONDS):
            raise CacheUnavailable(
                f"the cache at {cache.server} is not coherent after {READY_SECONDS:g} s: is that Redis up, and no "
                "fault in front of it? ready=False does not wait"
            )
        return cache

    yield make
    for cache in made:
        cache.close()
    forget_server(coherent_cache_namespace)


@pytest.fixture
def coherent_cache_memory(coherent_cache_factory: Callable[..., CoherentCache]) -> CoherentCache:
    """Give a ready cache on an empty server inside this process. Further ones by ``coherent_cache_factory()``."""
    return coherent_cache_factory()


@pytest.fixture
def fault_proxy(coherent_cache_url: str) -> Iterator[FaultProxy]:
    """Give a proxy in front of the Redis of ``coherent_cache_url``; connect caches to ``fault_proxy.url``."""
    from coherent_cache.testing import FaultProxy  # noqa: PLC0415

    with FaultProxy(coherent_cache_url) as proxy:
        yield proxy


@pytest.fixture
def fleet(
    fault_proxy: FaultProxy, coherent_cache_namespace: str, _coherent_cache_defaults: dict[str, Any]
) -> Iterator[Callable[..., Fleet]]:
    """Give a starter of processes with a cache each, of the test's namespace: ``fleet(3)`` is a ready ``Fleet``.

    ``fleet(number, *, url=None, **options)``: without a URL they connect through ``fault_proxy``. All processes end
    with the test. It fails if one of them ended by itself, unless an error has already said so.
    """
    from coherent_cache.testing import Fleet  # noqa: PLC0415

    started: list[Fleet] = []

    def start(number: int, *, url: str | None = None, **options: Any) -> Fleet:
        options = {"namespace": coherent_cache_namespace, **_coherent_cache_defaults, **options}
        started.append(Fleet(number, fault_proxy.url if url is None else url, **options))
        return started[-1]

    yield start
    fault_proxy.heal()  # so that caches can take their leave
    try:
        for each in started:
            each.check()
    finally:
        for each in started:
            _show_output(each)
            each.close()


def _show_output(fleet: Fleet) -> None:
    """Print what the processes wrote; pytest shows it if the test fails."""
    for member in fleet:
        if member.output:
            print(f"--- {member}:\n{member.output}")  # noqa: T201
