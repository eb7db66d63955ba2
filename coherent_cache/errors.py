"""Every error this package raises.

::

    CoherentCacheError
    ├── ConfigError          an option, a URL or a client is unusable; names the option and what is allowed
    ├── InvalidKey           a key is not a non-empty str of at most 1,024 UTF-8 bytes
    │   └── UnstableArgument  an argument of a cached function cannot be a part of a key
    ├── SerializationError   a value cannot be encoded, or stored bytes cannot be decoded
    │   └── ValueTooLarge    an encoded value exceeds ``max_value_bytes``
    ├── VersionConflict      a compare-and-set found another version
    ├── LoaderTimeout        a loader did not finish in time
    ├── LoaderDeadlock       a loader waits for its own result
    ├── CacheUnavailable     Redis refused a command or could not be reached
    │   └── NotPermitted     Redis' user lacks a right
    ├── NotCoherent          ``on_disconnect="fail"`` and no proof of freshness
    ├── NamespaceMismatch    the namespace was created with other settings
    └── ForeignValue         another program's bytes lie under one of our keys

Errors carry fields, so that no caller has to parse a message. No message contains a value or a password.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coherent_cache.versions import Version


def _restore(cls: type[CoherentCacheError], args: tuple[Any, ...], fields: dict[str, Any]) -> CoherentCacheError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(fields)
    return error


class CoherentCacheError(Exception):
    """Root of every error that this package raises. All of them can be copied and pickled, with their fields."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Restore message and fields as they are, whatever the constructor takes."""
        return _restore, (type(self), self.args, self.__dict__)


class ConfigError(CoherentCacheError, ValueError):
    """An option is unusable.

    Attributes:
        option: name of the option at fault.
    """

    def __init__(self, option: str, message: str) -> None:
        super().__init__(f"{option}: {message}")
        self.option = option


class InvalidKey(CoherentCacheError, ValueError):
    """A key is not a non-empty ``str`` of at most 1,024 UTF-8 bytes. Nothing was sent."""


class UnstableArgument(InvalidKey, TypeError):
    """An argument of a cached function has no text that is the same in every process. Nothing was called or sent.

    Attributes:
        function: name of the function.
        argument: name of its parameter, or the format string.
    """

    def __init__(self, function: str, argument: str, what: str) -> None:
        super().__init__(
            f"argument {argument!r} of {function} is {what}: that has no stable text to make a key of; "
            "give cached() a 'key' that takes what matters of it, or leave it out by 'ignore'"
        )
        self.function = function
        self.argument = argument


class SerializationError(CoherentCacheError, TypeError):
    """A value cannot be encoded (nothing was sent), or stored bytes cannot be decoded.

    Attributes:
        key: the key concerned, or None where it is not known.
    """

    def __init__(self, message: str, *, key: str | None = None) -> None:
        super().__init__(message if key is None else f"key {key!r}: {message}")
        self.reason = message
        self.key = key


class ValueTooLarge(SerializationError):
    """An encoded value exceeds ``max_value_bytes``. Nothing was sent.

    Attributes:
        size: bytes of the encoded value.
        limit: the configured ``max_value_bytes``.
    """

    def __init__(self, key: str, size: int, limit: int) -> None:
        super().__init__(
            f"the encoded value has {size:,} bytes, max_value_bytes allows {limit:,}; store less or raise the option",
            key=key,
        )
        self.size = size
        self.limit = limit


class VersionConflict(CoherentCacheError):
    """A compare-and-set found another version than it required. Nothing was written.

    Attributes:
        key: the key concerned.
        expected: the required version, or None if the key had to be absent.
        current: the version found, or None if the key is absent.
    """

    def __init__(self, key: str, expected: Version | None, current: Version | None) -> None:
        want = "absent" if expected is None else f"version {expected}"
        have = "absent" if current is None else f"version {current}"
        super().__init__(f"key {key!r} was expected to be {want} but is {have}")
        self.key = key
        self.expected = expected
        self.current = current


class LoaderTimeout(CoherentCacheError, TimeoutError):
    """A loader did not finish within ``hard_timeout``; it goes on in the background.

    Attributes:
        key: the key that was to be loaded.
        seconds: the time-out.
    """

    def __init__(self, key: str, seconds: float) -> None:
        super().__init__(
            f"key {key!r} was not loaded within hard_timeout={seconds} s; the loader goes on in the background. "
            "Raise the option, or give fail_safe= to be served the last known value"
        )
        self.key = key
        self.seconds = seconds


class LoaderDeadlock(CoherentCacheError, RuntimeError):
    """A loader asked, perhaps through other loaders, for the key that it is to load. It would wait for itself for ever.

    Attributes:
        key: the key that was asked for.
    """

    def __init__(self, key: str) -> None:
        super().__init__(
            f"key {key!r} was asked for by its own loader, or by one that it waits for; let loaders use get(), "
            "or load without a cycle"
        )
        self.key = key


class CacheUnavailable(CoherentCacheError):
    """Redis refused a command or could not be reached. The cause is chained.

    Attributes:
        maybe_applied: whether a write may have happened, or may still happen (its outcome is unknown).
        applied_keys: for bulk writes, keys that are known to have been written before the failure.
    """

    def __init__(self, message: str, *, maybe_applied: bool = False, applied_keys: tuple[str, ...] = ()) -> None:
        if maybe_applied:
            message += "; the write may have happened or may still happen"
        super().__init__(message)
        self.maybe_applied = maybe_applied
        self.applied_keys = applied_keys


class NotPermitted(CacheUnavailable):
    """The Redis user lacks a right. :func:`coherent_cache.acl_rule` tells all that it needs.

    Attributes:
        what: what was refused.
        rights: what lacks, as ``ACL SETUSER`` takes it, e.g. ``+xadd``; empty if it could not be found out.
    """

    def __init__(self, what: str, rights: tuple[str, ...] = (), *, maybe_applied: bool = False) -> None:
        remedy = (
            f"the user lacks {' '.join(rights)}: ACL SETUSER <user> {' '.join(rights)}"
            if rights
            else ("the user lacks a right: give it what coherent_cache.acl_rule() tells")
        )
        super().__init__(f"{what}; {remedy}", maybe_applied=maybe_applied)
        self.what = what
        self.rights = rights


class NotCoherent(CoherentCacheError):
    """``on_disconnect="fail"``: this instance cannot prove that a local value is fresh enough.

    Attributes:
        horizon_age: seconds since the last proof of freshness, ``inf`` if there never was one.
    """

    def __init__(self, horizon_age: float) -> None:
        super().__init__(
            f"disconnected from the invalidation stream (last proof of freshness {horizon_age:.3f} s ago) "
            'and on_disconnect="fail"; use on_disconnect="bypass" to read from Redis instead'
        )
        self.horizon_age = horizon_age


class NamespaceMismatch(CoherentCacheError):
    """The namespace exists with another number of shards or another format. Nothing was touched.

    Attributes:
        namespace: the namespace.
        found: what the namespace was created with, as ``format/shards``.
        expected: what this instance is configured with.
    """

    def __init__(self, namespace: str, found: str, expected: str) -> None:
        super().__init__(
            f"namespace {namespace!r} was created with format/shards {found}, this instance is configured with "
            f"{expected}; use the same 'shards' option everywhere, or another namespace"
        )
        self.namespace = namespace
        self.found = found
        self.expected = expected


class ForeignValue(CoherentCacheError):
    """Bytes that this package did not write, or that were damaged, lie under one of its keys.

    Attributes:
        key: the key concerned.
        reason: what is wrong with the bytes (never the bytes themselves).
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"key {key!r} holds no value of this cache ({reason}); delete it or overwrite it with set()")
        self.key = key
        self.reason = reason
