"""The application that brings the template tag."""

from django.apps import AppConfig


class CoherentCacheConfig(AppConfig):
    """For ``INSTALLED_APPS``; it has no models."""

    name = "coherent_cache.contrib.django"
    label = "coherent_cache"
    verbose_name = "coherent-cache"
