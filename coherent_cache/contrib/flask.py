"""A Flask extension: one cache per application, configured by ``app.config``.

::

    cache = FlaskCoherentCache()

    def create_app():
        app = Flask("shop")
        app.config["COHERENT_CACHE_URL"] = "redis://localhost:6379/0"
        cache.init_app(app)
        return app

    @cache.cached(ttl=60)
    def price(product): ...

    @app.get("/users/<int:number>")
    def user(number):
        return cache.current.get_or_set(f"user:{number}", lambda: load(number))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Unpack

from coherent_cache import CoherentCache, ConfigError
from coherent_cache.contrib.extras import missing_extra
from coherent_cache.memoize import Cached, CachedKeywords, Key, P, R, Tags

try:
    from flask import Flask, current_app
except ModuleNotFoundError as error:
    raise missing_extra("flask", error) from error

EXTENSION: Final = "coherent_cache"
"""Where the cache is in ``app.extensions``."""


class FlaskCoherentCache:
    """A cache for each of the applications that this object is initialised with.

    An application's configuration says what its cache is like:

    ============================  =======================================================================
    ``COHERENT_CACHE_URL``        where Redis is, as for :class:`CoherentCache`; required
    ``COHERENT_CACHE_NAMESPACE``  the namespace; default the application's name
    ``COHERENT_CACHE_OPTIONS``    a dict of further options of :class:`CoherentCache`
    ============================  =======================================================================

    The cache starts with the first use, so it may be made before a server forks its workers, and ends with the process;
    tests close it by ``app.extensions["coherent_cache"].close()``.
    """

    def __init__(self, app: Flask | None = None, **options: Any) -> None:
        """Make the extension, and initialise an application if one is given.

        Args:
            app: the application, or None to call :meth:`init_app` later.
            **options: defaults of :class:`CoherentCache`'s options for all applications; the configuration wins.
        """
        self._options = options
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Make an application's cache and put it into ``app.extensions["coherent_cache"]``.

        Raises:
            ConfigError: the configuration is unusable, or the application has a cache already.
        """
        if EXTENSION in app.extensions:
            raise ConfigError("app", f"{app.name} has a cache already")
        further = app.config.get("COHERENT_CACHE_OPTIONS", {})
        if not isinstance(further, dict):
            raise ConfigError("COHERENT_CACHE_OPTIONS", f"must be a dict, not {type(further).__name__}")
        options = {"namespace": app.name, **self._options, **further}
        for name, option in (("COHERENT_CACHE_URL", "url"), ("COHERENT_CACHE_NAMESPACE", "namespace")):
            if name in app.config:
                options[option] = app.config[name]
        if "url" not in options:
            raise ConfigError("COHERENT_CACHE_URL", "is required, for instance 'redis://localhost:6379/0'")
        app.extensions[EXTENSION] = CoherentCache(**options)

    @property
    def current(self) -> CoherentCache:
        """The current application's cache.

        Raises:
            ConfigError: the application was not initialised.
            RuntimeError: there is no current application (Flask's error, which says what to do).
        """
        cache = current_app.extensions.get(EXTENSION)
        if not isinstance(cache, CoherentCache):
            raise ConfigError("app", f"{current_app.name} has no cache; call init_app(app)")
        return cache

    def cached(
        self, *, key: Key = None, tags: Tags = (), ignore: Iterable[str] = (), **options: Unpack[CachedKeywords]
    ) -> Callable[[Callable[P, R]], Cached[P, R]]:
        """As :meth:`CoherentCache.cached`, for functions that are defined before there is an application.

        Each call uses the current application's cache, and ``ConfigError`` for an option comes with the first call.
        """
        return lambda function: Cached(
            _CurrentFront(self), function, key=key, tags=tags, ignore=ignore, options=options
        )


class _CurrentFront:
    """What a cached function asks, of the current application's cache."""

    def __init__(self, extension: FlaskCoherentCache) -> None:
        self._extension = extension

    @property
    def get_or_set(self) -> Callable[..., Any]:
        return self._extension.current.get_or_set

    @property
    def update(self) -> Callable[..., Any]:
        return self._extension.current.update

    @property
    def delete(self) -> Callable[[str], bool]:
        return self._extension.current.delete
