"""A mapping for ``cachetools.cached`` and ``cachetools.cachedmethod``, which makes them cache for the whole fleet.

::

    prices = CoherentMapping(cache, "prices", ttl=60)

    @cachetools.cached(cache=prices)
    def price(product, currency="EUR"): ...

It stores what a function returns after it has returned. So an invalidation while the function runs is not noticed, and
several processes may call it at the same time: ``@cache.cached()`` has neither limit, and is to be preferred where the
decorator can be chosen.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, MutableMapping
from typing import Any, Final, NoReturn

from coherent_cache import DEFAULT, MISSING, CoherentCache, ConfigError, ValueTooLarge, VersionConflict
from coherent_cache.argument_keys import named_key
from coherent_cache.config import check_ttl
from coherent_cache.defaults import Default
from coherent_cache.keys import check_tags

LONGEST_NAME: Final = 120
"""Characters of a mapping's name: it is a part of all its keys, and of a tag."""


class CoherentMapping(MutableMapping[Any, Any]):
    """A part of a cache as a mapping: keys are what cachetools makes of arguments, values live in all tiers.

    Keys are any values that have a text which is the same in every process (:mod:`coherent_cache.argument_keys`), hence
    the tuples that ``hashkey``, ``methodkey``, ``typedkey`` and ``typedmethodkey`` make of such arguments. 1, 1.0 and
    True are three keys. cachetools leaves the function and ``self`` out of its keys: each function needs a mapping of
    its own name, and what matters of ``self`` belongs into the key.

    It cannot be iterated, since nobody knows what others have stored, and its length is what this process holds
    locally. ``clear`` removes everything that was stored under its name, in the whole fleet. Threads may share it:
    cachetools' ``lock`` is not needed for its sake; a ``condition`` calls the function once per process.
    """

    def __init__(
        self,
        cache: CoherentCache,
        name: str,
        *,
        ttl: float | Default | None = DEFAULT,
        tags: Iterable[str] = (),
    ) -> None:
        """Make a mapping of a cache.

        Args:
            cache: the cache.
            name: begins all keys in the cache and is a tag of all values; 1 to 120 characters.
            ttl: seconds that values live; None for ever; default as the cache was configured.
            tags: further tags of all values.

        Raises:
            ConfigError: the name, the ttl or a tag cannot be.
        """
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
            raise ConfigError("name", f"must be a str of 1 to {LONGEST_NAME} characters, not {name!r}")
        if not isinstance(ttl, Default):
            check_ttl("ttl", ttl)
        self.cache = cache
        self.name = name
        self._ttl = ttl
        self._tag = f"mapping:{name}"
        self._tags = check_tags((self._tag, *check_tags(tags)))

    def key(self, key: Hashable) -> str:
        """Return the key in the cache.

        Raises:
            UnstableArgument: it has no stable text.
        """
        # Older cachetools make keys of a class of their own; as keys they equal plain tuples.
        return named_key(self.name, tuple(key) if isinstance(key, tuple) else key)

    def __getitem__(self, key: Hashable) -> Any:
        value = self.cache.get(self.key(key), MISSING)
        if value is MISSING:
            raise KeyError(key)
        return value

    def __setitem__(self, key: Hashable, value: Any) -> None:
        try:
            self.cache.set(self.key(key), value, ttl=self._ttl, tags=self._tags)
        except ValueTooLarge as error:
            raise _too_large(error) from error

    def __delitem__(self, key: Hashable) -> None:
        if not self.cache.delete(self.key(key)):
            raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return self.key(key) in self.cache

    def setdefault(self, key: Hashable, default: Any = None) -> Any:
        """Return the value of a key; if there is none, store ``default``, unless another process is faster."""
        name = self.key(key)
        try:
            self.cache.set(name, default, ttl=self._ttl, tags=self._tags, if_version=MISSING)
        except VersionConflict:
            return self.cache.get(name, default)
        except ValueTooLarge as error:
            raise _too_large(error) from error
        return default

    def clear(self) -> None:
        """Remove everything that was stored under this name, for all instances, in O(1) per shard."""
        self.cache.invalidate_tags(self._tag)

    def __len__(self) -> int:
        shards = self.cache._runtime.instance.shards  # noqa: SLF001 - nothing else knows the local tier's keys
        prefix = f"{self.name}:"
        # A copy of the keys at once: other threads add and remove some.
        return sum(key.startswith(prefix) for shard in shards for key in tuple(shard.tier.entries))

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> NoReturn:
        raise TypeError("a CoherentMapping cannot be iterated: other processes store into it, and Redis forgets")

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"<CoherentMapping {self.name!r} of {self.cache!r}>"


def _too_large(error: ValueTooLarge) -> ValueError:
    # What cachetools expects of a value that does not fit: the function's result is returned, and not stored.
    return ValueError(f"value too large: {error}")
