"""``@cache.cached(...)``: functions whose results are cached for the whole fleet."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial, update_wrapper
from typing import Any, ClassVar, Concatenate, Final, Generic, ParamSpec, Protocol, TypedDict, TypeVar, cast, overload

from coherent_cache.argument_keys import Arguments, CallKey, Template
from coherent_cache.core.operations import MISSING
from coherent_cache.defaults import DEFAULT, Default
from coherent_cache.errors import ConfigError

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")

Key = str | Callable[..., str] | None
Tags = Iterable[str] | Callable[..., Iterable[str]]

_ITS_CLASS: Final = ("__class__",)
"""What methods refer to that use ``super()``: no variable of a function around them."""


class Front(Protocol):
    """What a cached function asks of its cache, plain or as coroutines."""

    @property
    def get_or_set(self) -> Callable[..., Any]:
        """Return the value of a key; if there is none, load it."""

    @property
    def update(self) -> Callable[..., Any]:
        """Change a value atomically."""

    @property
    def delete(self) -> Callable[[str], Any]:
        """Delete a value."""


class CachedKeywords(TypedDict, total=False):
    """The options of a cached function's loads, as keywords. See :meth:`coherent_cache.CoherentCache.get_or_set`."""

    ttl: float | Default | None
    jitter: float | None
    negative_ttl: float | None
    fail_safe: float | None
    throttle: float
    soft_timeout: float | None
    hard_timeout: float | None
    refresh_ahead: float | None


class _Absent(Exception):
    """There is nothing to refresh."""


class Memoized(Generic[P]):
    """A function with keys and tags for its results."""

    coroutines: ClassVar[bool]
    """Whether it is for coroutine functions, or for those that are none."""

    def __init__(
        self,
        cache: Front,
        function: Callable[P, Any],
        *,
        key: Key,
        tags: Tags,
        ignore: Iterable[str],
        options: CachedKeywords,
    ) -> None:
        """Wrap a function.

        Args:
            cache: the cache.
            function: the function.
            key: see :meth:`coherent_cache.CoherentCache.cached`, as the others.
            tags: tags.
            ignore: parameters that are left out of the key.
            options: of ``get_or_set``.

        Raises:
            ConfigError: the function cannot be cached like that.
        """
        check_function(function, needs_name=key is None, coroutines=self.coroutines)
        update_wrapper(cast("Callable[P, Any]", self), function)  # first: it takes over the function's attributes
        self._cache = cache
        self._function = function
        self._options = options
        name = f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"
        arguments = Arguments(name, inspect.signature(function))
        self._make_key = _key_maker(key, arguments, _names("ignore", ignore))
        self._make_tags = _tags_maker(tags, arguments)

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return the key of the result for these arguments.

        Raises:
            UnstableArgument: an argument has no stable text, and there is no ``key``.
        """
        return self._make_key(args, kwargs)


class Cached(Memoized[P], Generic[P, R]):
    """A function whose results are cached. See :meth:`coherent_cache.CoherentCache.cached`.

    As a method it is bound like any function; all that is below then goes without ``self``.
    """

    coroutines = False

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return the cached result for these arguments; if there is none, call the function, once in the fleet."""
        key = self._make_key(args, kwargs)
        tags = self._make_tags(args, kwargs)
        result: R = self._cache.get_or_set(key, lambda: self._function(*args, **kwargs), tags=tags, **self._options)
        return result

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Delete the result for these arguments, for all instances; return whether there was one.

        Raises:
            As :meth:`coherent_cache.CoherentCache.delete`.
        """
        deleted: bool = self._cache.delete(self._make_key(args, kwargs))
        return deleted

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function now and store its result; the present one is served until then.

        If the present one is changed or deleted meanwhile, the function is called again rather than an old result
        stored. Of the options, ``ttl`` and ``tags`` count.
        """
        key, tags = self._make_key(args, kwargs), self._make_tags(args, kwargs)
        load = partial(self._function, *args, **kwargs)
        ttl = self._options.get("ttl", DEFAULT)
        try:
            result: R = self._cache.update(key, partial(_replace, load), default=MISSING, ttl=ttl, tags=tags)
        except _Absent:
            # Only a lease notices an invalidation of what is not there.
            result = self._cache.get_or_set(key, lambda: load(), tags=tags, **self._options)  # noqa: PLW0108
        # As `get_or_set` has it: no such thing.
        return None if result is MISSING else result  # type: ignore[return-value]

    @property
    def uncached(self) -> Callable[P, R]:
        """The function itself."""
        return self._function

    @overload
    def __get__(self, instance: None, owner: type) -> Cached[P, R]: ...

    @overload
    def __get__(self: Cached[Concatenate[Any, Q], R], instance: object, owner: type | None = None) -> Bound[Q, R]: ...

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """Bind to an instance, as functions do."""
        return self if instance is None else Bound(self, instance)


class AsyncCached(Memoized[P], Generic[P, R]):
    """A coroutine function whose results are cached. See :meth:`coherent_cache.AsyncCoherentCache.cached`.

    All is as for :class:`Cached`, with coroutines.
    """

    coroutines = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """See :class:`Memoized`."""
        super().__init__(*args, **kwargs)
        if hasattr(inspect, "markcoroutinefunction"):  # Python 3.12
            inspect.markcoroutinefunction(self)

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return the cached result for these arguments; if there is none, call the function, once in the fleet."""
        key = self._make_key(args, kwargs)
        tags = self._make_tags(args, kwargs)
        result: R = await self._cache.get_or_set(key, self._loader(*args, **kwargs), tags=tags, **self._options)
        return result

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """See :meth:`Cached.invalidate`."""
        deleted: bool = await self._cache.delete(self._make_key(args, kwargs))
        return deleted

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """See :meth:`Cached.refresh`."""
        key, tags = self._make_key(args, kwargs), self._make_tags(args, kwargs)
        load = self._loader(*args, **kwargs)
        ttl = self._options.get("ttl", DEFAULT)
        try:
            result: R = await self._cache.update(key, partial(_replace, load), default=MISSING, ttl=ttl, tags=tags)
        except _Absent:
            # Only a lease notices an invalidation of what is not there.
            result = await self._cache.get_or_set(key, load, tags=tags, **self._options)
        return None if result is MISSING else result  # type: ignore[return-value]

    @property
    def uncached(self) -> Callable[P, Coroutine[Any, Any, R]]:
        """The coroutine function itself."""
        return self._function

    def _loader(self, *args: P.args, **kwargs: P.kwargs) -> Callable[[], Coroutine[Any, Any, R]]:
        async def load() -> R:
            result: R = await self._function(*args, **kwargs)
            return result

        return load

    @overload
    def __get__(self, instance: None, owner: type) -> AsyncCached[P, R]: ...

    @overload
    def __get__(
        self: AsyncCached[Concatenate[Any, Q], R], instance: object, owner: type | None = None
    ) -> AsyncBound[Q, R]: ...

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """Bind to an instance, as functions do."""
        return self if instance is None else AsyncBound(self, instance)


def _replace(load: Callable[[], Any], present: Any) -> Any:
    if present is MISSING:
        raise _Absent
    return load()


class AsyncBound(Generic[P, R]):
    """A cached coroutine method of one instance: see :class:`AsyncCached`."""

    def __init__(self, cached: AsyncCached[Any, R], instance: object) -> None:
        update_wrapper(self, cached)  # first: it takes over the attributes
        self._cached = cached
        self._instance = instance

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """See :class:`AsyncCached`."""
        return await self._cached(self._instance, *args, **kwargs)

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """See :meth:`Cached.key`."""
        return self._cached.key(self._instance, *args, **kwargs)

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """See :meth:`Cached.invalidate`."""
        return await self._cached.invalidate(self._instance, *args, **kwargs)

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """See :meth:`Cached.refresh`."""
        return await self._cached.refresh(self._instance, *args, **kwargs)

    @property
    def uncached(self) -> Callable[P, Coroutine[Any, Any, R]]:
        """The method itself, bound."""
        return partial(self._cached.uncached, self._instance)


class Bound(Generic[P, R]):
    """A cached method of one instance: see :class:`Cached`."""

    def __init__(self, cached: Cached[Any, R], instance: object) -> None:
        update_wrapper(self, cached)  # first: it takes over the attributes
        self._cached = cached
        self._instance = instance

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """See :class:`Cached`."""
        return self._cached(self._instance, *args, **kwargs)

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """See :meth:`Cached.key`."""
        return self._cached.key(self._instance, *args, **kwargs)

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """See :meth:`Cached.invalidate`."""
        return self._cached.invalidate(self._instance, *args, **kwargs)

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """See :meth:`Cached.refresh`."""
        return self._cached.refresh(self._instance, *args, **kwargs)

    @property
    def uncached(self) -> Callable[P, R]:
        """The method itself, bound."""
        return partial(self._cached.uncached, self._instance)


def is_coroutine_function(function: Any) -> bool:
    """Tell whether calls of something return what is to be awaited, as far as can be known before."""
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def check_function(function: Any, *, needs_name: bool, coroutines: bool = False) -> None:
    """Check that the results of a function can be cached.

    Args:
        function: the function.
        needs_name: whether its name is to be a part of the keys.
        coroutines: whether it is to be a coroutine function.

    Raises:
        ConfigError: they cannot.
    """
    if isinstance(function, staticmethod | classmethod):
        raise ConfigError("cached", f"goes below @{type(function).__name__}, next to the function")
    if not callable(function):
        raise ConfigError("cached", f"decorates functions, not {type(function).__name__}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError("cached", "is for functions that return a value; this is a generator function")
    if is_coroutine_function(function) and not coroutines:
        raise ConfigError(
            "cached", "is for plain functions here; for coroutine functions use AsyncCoherentCache or .aio"
        )
    if coroutines and not is_coroutine_function(function):
        raise ConfigError("cached", "is for coroutine functions here; for plain functions use CoherentCache")
    if not needs_name:
        return
    name = getattr(function, "__qualname__", None)
    if not isinstance(name, str) or "<lambda>" in name:
        raise ConfigError("key", "is needed for a lambda or other callable that has no name of its own")
    code = getattr(inspect.unwrap(function), "__code__", None)
    if any(variable not in _ITS_CLASS for variable in getattr(code, "co_freevars", ())):
        reason = f"{name} refers to variables of the function around it, which may differ as its arguments do"
        raise ConfigError("key", f"is needed: {reason}")


def _names(option: str, names: Iterable[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise ConfigError(option, f"must be a collection of str, not one str: write ({names!r},)")
    return tuple(names)


def _key_maker(key: Key, arguments: Arguments, ignore: tuple[str, ...]) -> Callable[[Sequence[Any], Any], str]:
    arguments.check_names("ignore", ignore)
    if key is None:
        return CallKey(arguments, ignore)
    if ignore:
        raise ConfigError("ignore", "is for keys made of the arguments; this function has a 'key'")
    if isinstance(key, str):
        template = Template("key", key, arguments)
        return lambda args, kwargs: template.format(arguments.bind(args, kwargs))
    if callable(key):
        return lambda args, kwargs: key(*args, **kwargs)
    raise ConfigError("key", f"must be a format string, a callable or None, not {type(key).__name__}")


def _tags_maker(tags: Tags, arguments: Arguments) -> Callable[[Sequence[Any], Any], Iterable[str]]:
    if callable(tags):
        return lambda args, kwargs: tags(*args, **kwargs)
    templates = [Template("tags", tag, arguments) for tag in _names("tags", tags)]
    if not templates:
        return lambda _args, _kwargs: ()

    def make(args: Sequence[Any], kwargs: Any) -> tuple[str, ...]:
        named = arguments.bind(args, kwargs)
        return tuple([template.format(named) for template in templates])

    return make
