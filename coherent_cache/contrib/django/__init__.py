"""Django: a cache backend, and a template tag for fragments with tags.

::

    CACHES = {
        "default": {
            "BACKEND": "coherent_cache.contrib.django.CoherentCacheBackend",
            "LOCATION": "redis://localhost:6379/0",
            "TIMEOUT": 300,
            "OPTIONS": {"namespace": "shop", "serializer": "pickle", "max_entries": 10_000},
        }
    }
    INSTALLED_APPS = [..., "coherent_cache.contrib.django"]  # for {% load coherent_cache %}
"""

from coherent_cache.contrib.extras import missing_extra

try:
    import django  # noqa: F401 - to say what is missing
except ModuleNotFoundError as error:
    raise missing_extra("django", error) from error

from coherent_cache.contrib.django.backend import CoherentCacheBackend, UnpicklableValue

__all__ = ["CoherentCacheBackend", "UnpicklableValue"]
