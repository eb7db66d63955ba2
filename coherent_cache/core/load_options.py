"""What a caller may say about a load, checked before anything is sent."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from coherent_cache.config import check_fraction, check_seconds, check_ttl
from coherent_cache.errors import ConfigError
from coherent_cache.keys import check_tags

DEFAULT_THROTTLE: Final = 1.0
"""Seconds after a failed load in which a last known value is served without another attempt."""

_REQUIRED: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Options of one load. See :meth:`coherent_cache.CoherentCache.get_or_set` for what each one means."""

    ttl: float | None
    tags: tuple[str, ...] = ()
    jitter: float | None = None
    negative_ttl: float | None = None
    fail_safe: float | None = None
    throttle: float = DEFAULT_THROTTLE
    error_ttl: float | None = None
    soft_timeout: float | None = None
    hard_timeout: float | None = None
    refresh_ahead: float | None = None

    def __post_init__(self) -> None:
        """Check every option; the error names the option and what is allowed."""
        check_ttl("ttl", self.ttl)
        object.__setattr__(self, "tags", check_tags(self.tags))
        check_fraction("jitter", self.jitter)
        check_seconds("negative_ttl", self.negative_ttl)
        check_seconds("fail_safe", self.fail_safe)
        check_seconds("throttle", self.throttle, 0.0)
        check_seconds("error_ttl", self.error_ttl)
        check_seconds("soft_timeout", self.soft_timeout, 0.0)
        check_seconds("hard_timeout", self.hard_timeout, 0.0)
        check_fraction("refresh_ahead", self.refresh_ahead)
        if self.throttle is None:
            raise ConfigError("throttle", "must be seconds from 0; 0 for an attempt at each call")
        if self.soft_timeout is not None and self.fail_safe is None:
            raise ConfigError("soft_timeout", "needs fail_safe=seconds: there is a last known value to serve only then")
        if self.soft_timeout is not None and self.hard_timeout is not None and self.soft_timeout > self.hard_timeout:
            raise ConfigError(
                "soft_timeout", f"{self.soft_timeout} s must not exceed hard_timeout={self.hard_timeout} s"
            )
        if self.refresh_ahead is not None and self.ttl is None:
            raise ConfigError("refresh_ahead", "is a part of the time to live, and ttl=None is for ever; give a ttl")

    @property
    def timed(self) -> bool:
        """Whether a caller may go before its loader has returned."""
        return self.soft_timeout is not None or self.hard_timeout is not None

    @property
    def refresh_window(self) -> float:
        """Seconds before the end of its time in which a value is refreshed."""
        return 0.0 if self.refresh_ahead is None or self.ttl is None else self.refresh_ahead * self.ttl


@dataclass(slots=True)
class LoadContext:
    """What a loader is given that takes an argument. It may change ``ttl`` and ``tags`` by what it has loaded.

    Attributes:
        key: the key.
        ttl: seconds that the value will live in Redis; None for ever.
        tags: tags that it will carry.
    """

    key: str
    ttl: float | None
    tags: Iterable[str]


def takes_context(loader: object) -> bool:
    """Tell whether a loader has a positional parameter without default: it is then given a :class:`LoadContext`.

    Raises:
        ConfigError: the loader cannot be called, or needs more than one argument.
    """
    if not callable(loader):
        raise ConfigError("loader", f"must be callable, not {type(loader).__name__}")
    try:
        parameters = inspect.signature(loader).parameters.values()
    except (TypeError, ValueError):  # a builtin that does not tell
        return False
    needed = sum(each.kind in _REQUIRED and each.default is each.empty for each in parameters)
    if needed > 1:
        raise ConfigError(
            "loader", f"must take no argument, or one (a LoadContext), not {needed}; use functools.partial"
        )
    return needed == 1


def with_context(loader: Callable[..., Any]) -> Callable[[LoadContext], Any]:
    """Return a loader as the core calls it, with a context in any case.

    Raises:
        ConfigError: as :func:`takes_context`.
    """
    if takes_context(loader):
        return loader
    return lambda _context: loader()
