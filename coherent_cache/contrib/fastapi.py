"""FastAPI: dependencies that give a path operation the application's cache.

::

    app = FastAPI(lifespan=cache_lifespan(lambda: CoherentCache("redis://localhost:6379/0", namespace="shop")))

    @app.get("/users/{number}")
    async def user(number: int, cache: CacheDependency) -> User:
        return await cache.get_or_set(f"user:{number}", lambda: load(number))

    @app.get("/report")
    def report(cache: SyncCacheDependency) -> Report: ...  # runs in a thread
"""

from __future__ import annotations

from typing import Annotated

from coherent_cache import AsyncCoherentCache, CoherentCache
from coherent_cache.contrib.extras import missing_extra

try:
    from fastapi import Depends
except ModuleNotFoundError as error:
    raise missing_extra("fastapi", error) from error

from coherent_cache.contrib.starlette import cache_lifespan, get_cache, get_sync_cache

__all__ = ["CacheDependency", "SyncCacheDependency", "cache_lifespan", "get_cache", "get_sync_cache"]

CacheDependency = Annotated[AsyncCoherentCache, Depends(get_cache)]
"""For coroutines and websockets. Tests replace it by ``app.dependency_overrides[get_cache]``."""

SyncCacheDependency = Annotated[CoherentCache, Depends(get_sync_cache)]
"""For plain functions."""
