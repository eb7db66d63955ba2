"""A local cache in every worker that can be trusted: two tiers, Redis behind, versioned invalidation."""

from coherent_cache.__about__ import __version__
from coherent_cache.cache import DEFAULT, CacheEntry, CoherentCache
from coherent_cache.core.operations import MISSING
from coherent_cache.core.stats import CacheStats
from coherent_cache.errors import (
    CacheUnavailable,
    CoherentCacheError,
    ConfigError,
    ForeignValue,
    InvalidKey,
    LoaderTimeout,
    NamespaceMismatch,
    NotCoherent,
    SerializationError,
    ValueTooLarge,
    VersionConflict,
)
from coherent_cache.versions import Version

__all__ = [
    "DEFAULT",
    "MISSING",
    "CacheEntry",
    "CacheStats",
    "CacheUnavailable",
    "CoherentCache",
    "CoherentCacheError",
    "ConfigError",
    "ForeignValue",
    "InvalidKey",
    "LoaderTimeout",
    "NamespaceMismatch",
    "NotCoherent",
    "SerializationError",
    "ValueTooLarge",
    "Version",
    "VersionConflict",
    "__version__",
]
