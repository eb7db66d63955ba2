"""What type checkers make of the adapters. Checked like ``api.py``, never run."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, assert_type

from fastapi import FastAPI
from flask import Flask
from starlette.applications import Starlette
from starlette.requests import Request

from coherent_cache import AsyncCoherentCache, CoherentCache
from coherent_cache.contrib.cachetools import CoherentMapping
from coherent_cache.contrib.dogpile import CoherentCacheBackend, CoherentInvalidation
from coherent_cache.contrib.fastapi import CacheDependency, SyncCacheDependency
from coherent_cache.contrib.flask import FlaskCoherentCache
from coherent_cache.contrib.starlette import cache_lifespan, get_cache, get_sync_cache

cache = CoherentCache("memory://typing", namespace="typing")


@asynccontextmanager
async def inner(_: Any) -> AsyncIterator[dict[str, int]]:
    yield {"answer": 42}


app = FastAPI(lifespan=cache_lifespan(lambda: CoherentCache("memory://typing", namespace="typing")))
Starlette(lifespan=cache_lifespan(cache, inner, ready=None))
cache_lifespan("memory://typing")  # type: ignore[arg-type]


@app.get("/")
async def root(request: Request, front: CacheDependency, plain: SyncCacheDependency) -> None:
    assert_type(front, AsyncCoherentCache)
    assert_type(plain, CoherentCache)
    assert_type(get_cache(request), AsyncCoherentCache)
    assert_type(get_sync_cache(request), CoherentCache)


extension = FlaskCoherentCache(Flask("typing"), ttl=60)
assert_type(extension.current, CoherentCache)


@extension.cached(ttl=60, tags=["prices"])
def price(product: int) -> float:
    return product * 1.5


assert_type(price(7), float)
price("7")  # type: ignore[arg-type]
price.invalidate("7")  # type: ignore[arg-type]
extension.cached(timeout=60)  # type: ignore[call-arg]

mapping = CoherentMapping(cache, "prices", ttl=None, tags=["prices"])
mapping[1, "EUR"] = 7
backend = CoherentCacheBackend({"cache": cache})
invalidation = CoherentInvalidation(cache, "prices")
assert_type(invalidation.is_invalidated(0), bool)
