"""A local cache in every worker that can be trusted: two tiers, Redis behind, versioned invalidation."""

from typing import TYPE_CHECKING

from coherent_cache.__about__ import __version__
from coherent_cache.lazy import lazily

if TYPE_CHECKING:
    from coherent_cache.aio import AsyncCoherentCache
    from coherent_cache.batch import AsyncBatch, Batch, BatchResult
    from coherent_cache.cache import CacheEntry, CoherentCache
    from coherent_cache.core.acknowledging import Acknowledgement
    from coherent_cache.core.batching import BatchItem
    from coherent_cache.core.load_options import LoadContext
    from coherent_cache.core.operations import MISSING
    from coherent_cache.core.stats import CacheStats
    from coherent_cache.defaults import DEFAULT
    from coherent_cache.errors import (
        CacheUnavailable,
        CoherentCacheError,
        ConfigError,
        ForeignValue,
        InvalidKey,
        LoaderDeadlock,
        LoaderTimeout,
        NamespaceMismatch,
        NotCoherent,
        NotPermitted,
        SerializationError,
        UnstableArgument,
        ValueTooLarge,
        VersionConflict,
    )
    from coherent_cache.loading_front import LoadResult
    from coherent_cache.remote.rights import acl_rule
    from coherent_cache.versions import Version

__all__ = [
    "DEFAULT",
    "MISSING",
    "Acknowledgement",
    "AsyncBatch",
    "AsyncCoherentCache",
    "Batch",
    "BatchItem",
    "BatchResult",
    "CacheEntry",
    "CacheStats",
    "CacheUnavailable",
    "CoherentCache",
    "CoherentCacheError",
    "ConfigError",
    "ForeignValue",
    "InvalidKey",
    "LoadContext",
    "LoadResult",
    "LoaderDeadlock",
    "LoaderTimeout",
    "NamespaceMismatch",
    "NotCoherent",
    "NotPermitted",
    "SerializationError",
    "UnstableArgument",
    "ValueTooLarge",
    "Version",
    "VersionConflict",
    "__version__",
    "acl_rule",
]

if not TYPE_CHECKING:
    __getattr__ = lazily(
        __name__,
        __all__,
        (
            "coherent_cache.errors",
            "coherent_cache.versions",
            "coherent_cache.core.stats",
            "coherent_cache.defaults",
            "coherent_cache.core.operations",
            "coherent_cache.core.batching",
            "coherent_cache.core.load_options",
            "coherent_cache.batch",
            "coherent_cache.loading_front",
            "coherent_cache.aio",
            "coherent_cache.cache",
            "coherent_cache.remote.rights",
        ),
    )
