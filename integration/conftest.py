"""Fixtures for tests against a real Redis. Which server is used: see ``integration/servers.py``."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

from integration.servers import ServerError, live_servers, start_server, wait_until
from integration.workers import Processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import redis

    from integration.servers import RedisServer

CLOSE_TIMEOUT = 5.0  # seconds until the connections of a finished test must be closed

_SESSION_SERVER = pytest.StashKey["RedisServer"]()


def _session_server(config: pytest.Config) -> RedisServer:
    """Return the server of this session; starts it when first asked for."""
    server = config.stash.get(_SESSION_SERVER, None)
    if server is None:
        server = config.stash[_SESSION_SERVER] = start_server()
    return server


def pytest_configure(config: pytest.Config) -> None:
    """Let programs that tests start obey signals, also where the tests run in the background or under ``nohup``.

    What is ignored here would be ignored by them too; a handler, even one that does nothing, is not handed on.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def pytest_report_header(config: pytest.Config) -> str | None:
    if config.option.collectonly:
        return None
    try:
        return f"redis: {_session_server(config).describe()}"
    except ServerError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop what a session without the fixture has started. ``stop`` complains about what is left."""
    for server in live_servers():
        server.stop()


@pytest.fixture(scope="session")
def redis_server(pytestconfig: pytest.Config) -> Iterator[RedisServer]:
    """Give the one server of this session, empty at the start of every test. Faults are for ``fresh_server``."""
    server = _session_server(pytestconfig)
    yield server
    server.stop()
    del pytestconfig.stash[_SESSION_SERVER]


@pytest.fixture
def server_factory() -> Iterator[Callable[..., RedisServer]]:
    """Give ``start_server``; what it starts ends with the test."""
    started: list[RedisServer] = []

    def factory(**options: Any) -> RedisServer:
        started.append(start_server(**options))
        return started[-1]

    yield factory
    for server in started:
        server.stop()
        assert server.gone(), f"{server.kind} server at {server.url} was left behind"


@pytest.fixture
def fresh_server(server_factory: Callable[..., RedisServer]) -> RedisServer:
    """Give a server of this test alone: it may be paused, killed and restarted.

    It keeps its data over ``restart(keep_data=True)`` but not over ``kill``; for that use
    ``server_factory(durable=True)``.
    """
    return server_factory()


@pytest.fixture(autouse=True)
def _clean_redis(request: pytest.FixtureRequest) -> Iterator[None]:
    """Empty the session's server before a test, and check that the test closed its connections."""
    if "redis_server" not in request.fixturenames:
        yield
        return
    server: RedisServer = request.getfixturevalue("redis_server")
    server.flush()
    with server.client() as plain:
        before = {client["id"] for client in _connections(plain)}
        yield
        left: list[dict[str, str]] = []

        def closed() -> bool:
            left[:] = [client for client in _connections(plain) if client["id"] not in before]
            return not left

        try:
            wait_until(closed, CLOSE_TIMEOUT, "the test's connections are closed")
        except AssertionError as error:
            pytest.fail(f"{error}; open: {[(c['name'], c['addr'], c['cmd']) for c in left]}")


def _connections(client: redis.Redis) -> list[dict[str, str]]:
    # The plain connection counts as one of its own. Others that only watch a server are not the test's either.
    own = str(client.client_id())
    return [other for other in client.client_list() if other["id"] != own]


@pytest.fixture(scope="session")
def coherent_cache_url(redis_server: RedisServer) -> str:
    """Give the plugin's fixtures the server of this session."""
    return redis_server.url


@pytest.fixture
def namespace(coherent_cache_namespace: str) -> str:
    """Give a namespace that no other test uses, readable in a dump."""
    return coherent_cache_namespace


@pytest.fixture
def processes() -> Iterator[Processes]:
    """Give a starter of workers; see ``integration/workers.py``. What still runs after the test is killed."""
    started = Processes()
    yield started
    started.close()
