"""What the exact codecs, msgpack and json, share: why a value is refused, and where in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from coherent_cache.errors import SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_NESTING: Final = 128
"""Containers inside one another that msgpack and json take. Real values rarely have ten; the parsers allow 500."""

LONGEST_STEP: Final = 40
"""Characters of a dict key that an error message shows; a longer one is data rather than a name."""

LONGEST_PATH: Final = 200
"""Characters of a path that an error message shows."""


class Refused(Exception):
    """A value or its bytes are refused. The text is fit for users: it contains types, never values."""


class Format:
    """What one strict codec takes: the types, and a check of a single scalar."""

    __slots__ = ("check", "containers", "name", "scalars", "str_keys")

    def __init__(
        self,
        name: str,
        scalars: frozenset[type],
        containers: frozenset[type],
        check: Callable[[Any], object],
        *,
        str_keys: bool,
    ) -> None:
        self.name = name
        self.scalars = scalars
        self.containers = containers
        self.check = check
        self.str_keys = str_keys


def explain(value: Any, form: Format, error: BaseException) -> SerializationError:
    """Return the error for a value whose encoding failed, with the path to the first offender.

    Slow on purpose: the fast way only finds out *that* something is wrong.
    """
    try:
        found = _find(value, form, "$", ())
    except (RecursionError, RuntimeError, MemoryError):
        found = None
    if found is None:
        return SerializationError(
            f"the value of type {type_name(type(value))} cannot be encoded by serializer {form.name!r} "
            f"({type(error).__name__}); was it changed by another thread meanwhile?"
        )
    path, reason = found
    if len(path) > LONGEST_PATH:
        path = f"{path[:LONGEST_PATH]}..."
    return SerializationError(f"{path}: {reason}")


def _find(value: Any, form: Format, path: str, above: tuple[int, ...]) -> tuple[str, str] | None:
    """Return path and reason of the first part that ``form`` does not take, or None if there is none."""
    reason = _scalar_problem(value, form) if type(value) in form.scalars else _container_problem(value, form, above)
    if reason is not None:
        return path, reason
    if type(value) in form.containers:
        for item, step in _parts(value):
            found = _find(item, form, path + step, (*above, id(value)))
            if found is not None:
                return found
    return None


def _scalar_problem(value: Any, form: Format) -> str | None:
    name = type_name(type(value))
    try:
        form.check(value)
    except UnicodeEncodeError:
        return f"{name} with lone surrogates, which UTF-8 cannot hold"
    except Refused as refused:
        return str(refused)
    except Exception as error:  # noqa: BLE001 - whatever it is, this scalar is the offender
        return f"{name} that cannot be encoded ({type(error).__name__})"
    return None


def _container_problem(value: Any, form: Format, above: tuple[int, ...]) -> str | None:
    name = type_name(type(value))
    if type(value) not in form.containers:
        return f"type {name} is not stored exactly by serializer {form.name!r}; convert it, or use another serializer"
    if id(value) in above:
        return f"the {name} contains itself"
    if len(above) >= MAX_NESTING:
        return f"more than {MAX_NESTING} containers inside one another"
    if form.str_keys and type(value) is dict:
        for key in value:
            if type(key) is not str:
                return f"the dict has a key of type {type_name(type(key))}; {form.name} takes str keys only"
    return None


def _parts(value: Any) -> Iterator[tuple[Any, str]]:
    """Yield the parts of a container, each with its step of the path. Keys that may be data are shown by type only."""
    if type(value) is dict:
        for key, item in value.items():
            yield key, "<key>"
            plain = type(key) is str and key.isascii() and key.isidentifier() and len(key) <= LONGEST_STEP
            yield item, f".{key}" if plain else f"[<{type_name(type(key))}>]"
    elif type(value) is list or type(value) is tuple:
        for index, item in enumerate(value):
            yield item, f"[{index}]"
    else:
        for item in value:
            yield item, "<item>"


def type_name(kind: type) -> str:
    """Return a type's name for messages: with its module, unless it is a builtin."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def damaged(name: str, error: BaseException) -> SerializationError:
    """Return the error for stored bytes that the codec called ``name`` did not write."""
    reason = str(error) if isinstance(error, Refused) else type(error).__name__
    return SerializationError(f"the stored bytes are not what serializer {name!r} writes ({reason})")
