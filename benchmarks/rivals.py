# ruff: noqa: PLC0415  # what is not installed is noticed when it is opened
"""Other caches for Python, each behind the same few calls. What is not installed is left out, by name.

Each is set up as its own documentation shows it, with what makes it as fast as it can be: values shared where it
allows that, as many entries as are measured. A rival with coroutines is measured inside a running loop.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import urlparse

from bench import ready_cache

Kind = Literal["one process", "two tiers", "remote"]
ENTRIES: Final = 10_000


@dataclass(frozen=True)
class Rival:
    """A cache under its own name.

    Attributes:
        kind: ``one process``: memory alone; ``two tiers``: memory and Redis; ``remote``: Redis alone.
        get: read a key; a coroutine function if ``asynchronous``.
        put: write a key, likewise.
        get_many: read keys, likewise; None if it has nothing for that.
        forget: empty the local tier; None if there is none, or no way to.
        asynchronous: whether its calls are coroutines.
        end: what is to be awaited at the end, if anything.
    """

    kind: Kind
    get: Callable[[str], Any]
    put: Callable[[str, Any], Any]
    get_many: Callable[[list[str]], Any] | None = None
    forget: Callable[[], Any] | None = None
    asynchronous: bool = False
    end: Callable[[], Awaitable[None]] | None = None


Opener = Callable[[str, str], AbstractContextManager[Rival]]
RIVALS: Final[dict[str, Opener]] = {}
"""Opens each by name, given a URL of Redis and a namespace. Raises ImportError if it is not installed."""


def rival(name: str) -> Callable[[Callable[[str, str], Iterator[Rival]]], Opener]:
    """Enter a rival under its name."""

    def enter(open_: Callable[[str, str], Iterator[Rival]]) -> Opener:
        RIVALS[name] = contextmanager(open_)
        return RIVALS[name]

    return enter


@rival("coherent-cache")
def ours(url: str, namespace: str) -> Iterator[Rival]:
    with ready_cache(url, namespace, max_entries=ENTRIES) as cache:
        yield Rival("two tiers", cache.get, cache.set, cache.get_many, cache.clear_local)


@rival("coherent-cache, shared values")
def ours_shared(url: str, namespace: str) -> Iterator[Rival]:
    with ready_cache(url, namespace, max_entries=ENTRIES, copy_values=False) as cache:
        yield Rival("two tiers", cache.get, cache.set, cache.get_many, cache.clear_local)


@rival("dict")
def plain_dict(url: str, namespace: str) -> Iterator[Rival]:
    held: dict[str, Any] = {}
    yield Rival("one process", held.get, held.__setitem__)


@rival("functools.lru_cache")
def lru_cache(url: str, namespace: str) -> Iterator[Rival]:
    source: dict[str, Any] = {}

    @functools.lru_cache(maxsize=ENTRIES)
    def cached(key: str) -> Any:
        return source[key]

    def put(key: str, value: Any) -> None:
        source[key] = value
        cached(key)

    yield Rival("one process", cached, put)


@rival("cachetools LRUCache")
def cachetools_lru(url: str, namespace: str) -> Iterator[Rival]:
    import cachetools

    held = cachetools.LRUCache(ENTRIES)
    yield Rival("one process", held.get, held.__setitem__)


@rival("cachetools TTLCache")
def cachetools_ttl(url: str, namespace: str) -> Iterator[Rival]:
    import cachetools

    held = cachetools.TTLCache(ENTRIES, 300)
    yield Rival("one process", held.get, held.__setitem__)


@rival("cachebox LRUCache")
def cachebox_lru(url: str, namespace: str) -> Iterator[Rival]:
    import cachebox

    held = cachebox.LRUCache(ENTRIES)
    yield Rival("one process", held.get, held.__setitem__)


@rival("lru-dict")
def lru_dict(url: str, namespace: str) -> Iterator[Rival]:
    import lru

    held = lru.LRU(ENTRIES)
    yield Rival("one process", held.get, held.__setitem__)


@rival("theine")
def theine_cache(url: str, namespace: str) -> Iterator[Rival]:
    import theine

    held = theine.Cache(ENTRIES)
    yield Rival("one process", lambda key: held.get(key)[0], held.set)


@rival("redis-py")
def redis_py(url: str, namespace: str) -> Iterator[Rival]:
    import redis

    with redis.Redis.from_url(url) as client:
        yield _pickled(client, namespace, "remote", None)


@rival("redis-py, client-side caching")
def redis_py_caching(url: str, namespace: str) -> Iterator[Rival]:
    import redis
    from redis.cache import CacheConfig

    with redis.Redis.from_url(url, protocol=3, cache_config=CacheConfig(max_size=ENTRIES)) as client:
        yield _pickled(client, namespace, "two tiers", client.get_cache().flush)


def _pickled(client: Any, namespace: str, kind: Kind, forget: Callable[[], Any] | None) -> Rival:
    def get(key: str) -> Any:
        raw = client.get(f"{namespace}:{key}")
        return None if raw is None else pickle.loads(raw)

    def put(key: str, value: Any) -> None:
        client.set(f"{namespace}:{key}", pickle.dumps(value), ex=300)

    def get_many(keys: list[str]) -> list[Any]:
        raws = client.mget([f"{namespace}:{key}" for key in keys])
        return [None if raw is None else pickle.loads(raw) for raw in raws]

    return Rival(kind, get, put, get_many, forget)


@rival("dogpile.cache (memory)")
def dogpile_memory(url: str, namespace: str) -> Iterator[Rival]:
    from dogpile.cache import make_region

    region = make_region().configure("dogpile.cache.memory")
    yield Rival("one process", region.get, region.set, region.get_multi)


@rival("dogpile.cache (redis)")
def dogpile_redis(url: str, namespace: str) -> Iterator[Rival]:
    from dogpile.cache import make_region

    region = make_region(key_mangler=lambda key: f"{namespace}:{key}")
    region.configure("dogpile.cache.redis", expiration_time=300, arguments={"url": url})
    yield Rival("remote", region.get, region.set, region.get_multi)


@rival("hydict")
def hydict_cache(url: str, namespace: str) -> Iterator[Rival]:
    from hydict import HDict, RedisConfig

    where = urlparse(url)
    held = HDict(RedisConfig(host=where.hostname or "localhost", port=where.port or 6379), max_entries=ENTRIES)

    def put(key: str, value: Any) -> None:
        held.set(f"{namespace}:{key}", value)

    yield Rival("two tiers", lambda key: held.get(f"{namespace}:{key}"), put)


@rival("cashews, client side")
def cashews_cache(url: str, namespace: str) -> Iterator[Rival]:
    from cashews import Cache

    cache = Cache(name=namespace)
    cache.setup(url, client_side=True, client_side_prefix=f"{namespace}:", prefix="")

    async def put(key: str, value: Any) -> None:
        await cache.set(f"{namespace}:{key}", value, expire=300)

    async def get_many(keys: list[str]) -> Any:
        return await cache.get_many(*[f"{namespace}:{key}" for key in keys])

    yield Rival("two tiers", lambda key: cache.get(f"{namespace}:{key}"), put, get_many, asynchronous=True)


@rival("aiocache (redis)")
def aiocache_redis(url: str, namespace: str) -> Iterator[Rival]:
    from aiocache import RedisCache
    from aiocache.serializers import PickleSerializer

    where = urlparse(url)
    cache = RedisCache(
        endpoint=where.hostname, port=where.port, namespace=namespace, serializer=PickleSerializer(), ttl=300
    )
    yield Rival("remote", cache.get, cache.set, cache.multi_get, asynchronous=True)


@rival("aiocache (memory)")
def aiocache_memory(url: str, namespace: str) -> Iterator[Rival]:
    from aiocache import SimpleMemoryCache

    cache = SimpleMemoryCache()
    yield Rival("one process", cache.get, cache.set, cache.multi_get, asynchronous=True)


@rival("coredis, tracking cache")
def coredis_tracking(url: str, namespace: str) -> Iterator[Rival]:
    import coredis
    from coredis.patterns.cache import LRUCache

    client = coredis.Redis.from_url(url, cache=LRUCache(max_keys=ENTRIES))
    opened = False

    async def ready() -> Any:
        nonlocal opened
        if not opened:
            await client.__aenter__()
            opened = True
        return client

    async def get(key: str) -> Any:
        raw = await (await ready()).get(f"{namespace}:{key}")
        return None if raw is None else pickle.loads(raw)

    async def put(key: str, value: Any) -> None:
        await (await ready()).set(f"{namespace}:{key}", pickle.dumps(value), ex=300)

    async def end() -> None:
        if opened:
            await client.__aexit__(None, None, None)

    yield Rival("two tiers", get, put, asynchronous=True, end=end)
