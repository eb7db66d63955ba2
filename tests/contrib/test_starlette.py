"""Starlette and FastAPI: the lifespan makes and closes the cache, requests and websockets find it."""

from __future__ import annotations

import warnings
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from coherent_cache import AsyncCoherentCache, CacheUnavailable, CoherentCache, ConfigError, NamespaceMismatch
from coherent_cache.contrib.fastapi import CacheDependency, SyncCacheDependency, cache_lifespan, get_cache
from coherent_cache.contrib.starlette import get_sync_cache

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the newest one would rather have another client than httpx
    from starlette.testclient import TestClient

FAST = {"namespace": "web", "heartbeat": 0.1}


@pytest.fixture(params=[CoherentCache, AsyncCoherentCache])
def make(request, url):
    return lambda: request.param(url, **FAST)


@pytest.fixture
def serve():
    """Start applications; each is told to end after the test."""
    started = []

    def serve(app):
        started.append(TestClient(app))
        return started[-1].__enter__()

    yield serve
    for client in started:
        client.__exit__(None, None, None)


def fastapi_app(source, loaded, **options):
    app = FastAPI(lifespan=cache_lifespan(source, **options))

    @app.get("/users/{number}")
    async def user(number: int, cache: CacheDependency) -> dict[str, int]:
        async def load():
            loaded.append(number)
            return {"id": number}

        found: dict[str, int] = await cache.get_or_set(f"user:{number}", load)
        return found

    @app.delete("/users/{number}")
    def forget(number: int, cache: SyncCacheDependency) -> bool:
        return cache.delete(f"user:{number}")

    @app.websocket("/users/{number}/live")
    async def live(socket: WebSocket, number: int, cache: CacheDependency):
        await socket.accept()
        await socket.send_json(await cache.get(f"user:{number}"))
        await socket.close()

    return app


def test_path_operations_get_the_cache(make, serve):
    loaded = []
    client = serve(fastapi_app(make, loaded))
    assert client.get("/users/7").json() == client.get("/users/7").json() == {"id": 7}
    assert loaded == [7]
    with client.websocket_connect("/users/7/live") as socket:
        assert socket.receive_json() == {"id": 7}


def test_coroutines_and_threads_share_one_local_tier(url, serve):
    loaded, made = [], []

    def make():
        made.append(CoherentCache(url, **FAST))
        return made[-1]

    client = serve(fastapi_app(make, loaded))
    client.get("/users/7")
    assert made[0].get_entry("user:7").tier == "local"
    assert client.delete("/users/7").json() is True
    assert client.get("/users/7").json() == {"id": 7}
    assert loaded == [7, 7]
    assert len(made) == 1


def test_two_workers_are_coherent(make, serve):
    one, other = ([], [])
    clients = [serve(fastapi_app(make, loaded)) for loaded in (one, other)]
    assert [client.get("/users/7").json() for client in clients] == [{"id": 7}] * 2
    assert one + other == [7]


def test_the_cache_is_coherent_when_serving_begins_and_closed_when_it_ends(make):
    made = []

    def note():
        made.append(make())
        return made[-1]

    app = fastapi_app(note, [])
    for _ in range(2):  # an application can be started again
        with TestClient(app):
            assert made[-1].state == "coherent"
        assert "closed" in repr(made[-1])
    assert len(made) == 2


def test_an_instance_is_closed_as_well(url):
    cache = CoherentCache(url, **FAST)
    with TestClient(fastapi_app(cache, [])) as client:
        client.get("/users/7")
    with pytest.raises(CacheUnavailable, match="closed"):
        cache.get("user:7", max_staleness=0)


def test_lifespans_are_joined(make):
    order = []

    @asynccontextmanager
    async def inner(app):
        order.append("begin")
        yield {"answer": 42}
        order.append("end")

    async def tell(request):
        await get_cache(request).set("key", 1)
        return JSONResponse([request.state.answer, await get_cache(request).get("key")])

    app = Starlette(routes=[Route("/", tell)], lifespan=cache_lifespan(make, inner))
    with TestClient(app) as client:
        assert client.get("/").json() == [42, 1]
        assert order == ["begin"]
    assert order == ["begin", "end"]


def test_the_inner_lifespan_may_use_the_cache_until_its_end(url):
    cache, seen = AsyncCoherentCache(url, **FAST), []

    @asynccontextmanager
    async def inner(app):
        await cache.set("key", 1)
        yield
        seen.append(await cache.get("key"))

    with TestClient(Starlette(lifespan=cache_lifespan(cache, inner))):
        pass
    assert seen == [1]


def test_a_worker_starts_without_redis():
    def make():
        return AsyncCoherentCache("redis://127.0.0.1:1/0", namespace="web", timeout=0.05)

    for options in ({"ready": 0.05}, {"ready": None}):
        with TestClient(fastapi_app(make, [], **options)) as client, pytest.raises(CacheUnavailable):
            client.get("/users/7")


def test_a_worker_with_other_settings_does_not_start(url):
    with CoherentCache(url, **FAST) as cache:
        assert cache.wait_ready()
        with (
            pytest.raises(NamespaceMismatch),
            TestClient(fastapi_app(lambda: AsyncCoherentCache(url, shards=4, **FAST), [])),
        ):
            pass


def test_a_test_can_bring_its_own_cache(url, make):
    with CoherentCache(url, namespace="another", heartbeat=0.1) as own:
        own.set("user:7", {"id": 70})
        app = fastapi_app(make, [])
        app.dependency_overrides[get_cache] = lambda: own.aio
        with TestClient(app) as client:
            assert client.get("/users/7").json() == {"id": 70}


def test_what_cannot_be_is_named(url, serve):
    for source in (None, "redis://localhost"):
        with pytest.raises(ConfigError, match="source"):
            cache_lifespan(source)
    with pytest.raises(ConfigError, match="ready"):
        cache_lifespan(lambda: None, ready=-1)
    with pytest.raises(ConfigError, match="must return a cache"), TestClient(fastapi_app(lambda: None, [])):
        pass

    async def plain(request):
        return JSONResponse(get_sync_cache(request).get("key"))

    without = Starlette(routes=[Route("/", plain)])
    with pytest.raises(ConfigError, match="lifespan=cache_lifespan"):
        TestClient(without).get("/")
    asynchronous = cache_lifespan(lambda: AsyncCoherentCache(url, **FAST))
    client = serve(Starlette(routes=[Route("/", plain)], lifespan=asynchronous))
    with pytest.raises(ConfigError, match="give cache_lifespan a CoherentCache"):
        client.get("/")
