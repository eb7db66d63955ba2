"""Keys from arguments: one text for equal arguments, the same in every process, release and Python.

The text of a call names the function, and each argument by its parameter, defaults included::

    shop.prices.price(product=7,currency="EUR",at=date(2026-01-02))

Only values whose text is their whole meaning are taken, by their exact types: None, bool, int, float, str, bytes,
datetime, date, time, timedelta, Decimal, UUID; tuples, lists, dicts, sets and frozensets of them; and by their names
members of enums, classes, and frozen dataclasses (their compared fields). Equal texts mean equal types and values: 1,
1.0, True and "1" are four texts; the order of dicts, sets and keyword arguments does not count. Never ``repr`` or
``id`` of an object: the one may tell too little, both may differ in each process. A key of more than 250 bytes has the
digest of its text instead of the arguments.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum
from hashlib import blake2b
from inspect import Parameter, Signature
from string import Formatter
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from coherent_cache.errors import ConfigError, UnstableArgument
from coherent_cache.keys import MAX_KEY_BYTES

MAX_DEPTH: Final = 64
"""Containers inside one another in an argument."""

LONGEST_TEXT: Final = 250
"""Bytes of a key above which the arguments' text is replaced by its digest: Redis and peers carry keys around."""

DIGEST_BYTES: Final = 20
"""Length of that digest."""


class _Unstable(Exception):
    """A value has no stable text. The text of this error says what it is."""


def _text(value: Any, depth: int) -> str:
    """Return the text of a value.

    Args:
        value: the value.
        depth: containers around it.

    Raises:
        _Unstable: it has none.
    """
    kind: type = type(value)
    plain = _PLAIN.get(kind)
    if plain is not None:
        return plain(value)
    if depth >= MAX_DEPTH:
        raise _Unstable(f"more than {MAX_DEPTH} containers inside one another")
    depth += 1
    if kind in _SEQUENCES:
        first, last = _SEQUENCES[kind]
        return f"{first}{','.join([_text(item, depth) for item in value])}{last}"
    if kind in (set, frozenset):
        return f"{kind.__name__}{{{','.join(sorted([_text(item, depth) for item in value]))}}}"
    if kind is dict:
        pairs = sorted([f"{_text(key, depth)}:{_text(item, depth)}" for key, item in value.items()])
        return f"{{{','.join(pairs)}}}"
    return _text_by_name(value, depth)


def _text_by_name(value: Any, depth: int) -> str:
    """Return the text of what is known by the name of its class."""
    kind = type(value)
    if isinstance(value, type):
        return f"class {_name(value)}"
    if isinstance(value, Enum):
        # A combination of flags may have no name.
        return f"{_name(kind)}.{value.name}" if value.name else f"{_name(kind)}({_text(value.value, depth)})"
    if is_dataclass(value) and kind.__dataclass_params__.frozen:
        compared = [each.name for each in fields(value) if each.compare]
        return f"{_name(kind)}({','.join([f'{name}={_text(getattr(value, name), depth)}' for name in compared])})"
    raise _Unstable(f"of type {kind.__module__}.{kind.__qualname__}")


def _name(kind: type) -> str:
    """Return a class' name, if it names this class alone."""
    if "<" in kind.__qualname__:
        raise _Unstable(f"of a class that is made inside of a function, {kind.__module__}.{kind.__qualname__}")
    return f"{kind.__module__}.{kind.__qualname__}"


def _str(value: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise _Unstable("a str with lone surrogates") from None
    return json.dumps(value, ensure_ascii=False)


def _moment(value: datetime | time) -> str:
    fold = ",fold" if value.fold else ""
    return f"{type(value).__name__}({value.isoformat()}{_zone(value.tzinfo)}{fold})"


def _zone(zone: tzinfo | None) -> str:
    if zone is None:
        return ""
    if type(zone) is timezone:
        return f"[{zone.tzname(None)}]"
    if type(zone) is ZoneInfo and zone.key is not None:
        return f"[{zone.key}]"
    raise _Unstable(f"in a time zone of type {type(zone).__module__}.{type(zone).__qualname__}, which has no key")


_PLAIN: Final[dict[type, Callable[[Any], str]]] = {
    type(None): str,
    bool: str,
    int: str,
    float: float.__repr__,  # the shortest text that gives the same float, in every Python
    str: _str,
    bytes: lambda value: f"bytes({value.hex()})",
    datetime: _moment,
    date: lambda value: f"date({value.isoformat()})",
    time: _moment,
    timedelta: lambda value: f"timedelta({value.days},{value.seconds},{value.microseconds})",
    # The context may want another case of the exponent.
    Decimal: lambda value: f"Decimal({str(value).upper()})",
    UUID: lambda value: f"UUID({value})",
}
_SEQUENCES: Final[dict[type, tuple[str, str]]] = {tuple: ("(", ")"), list: ("[", "]")}


class Arguments:
    """How the arguments of one function get their names."""

    def __init__(self, name: str, signature: Signature) -> None:
        """Prepare what all calls have in common.

        Args:
            name: the function's name, for messages.
            signature: its signature.
        """
        self.name = name
        self.names = tuple(signature.parameters)
        self._signature = signature
        parameters = signature.parameters.values()
        # Without `*args` and the like, arguments by position need no help; `Signature.bind` takes some microseconds.
        by_position = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
        self._simple = all(parameter.kind in by_position for parameter in parameters)
        self._defaults = {each.name: each.default for each in parameters if each.default is not Parameter.empty}
        self._required = len(self.names) - len(self._defaults)

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return all arguments by the names of their parameters, defaults included.

        Raises:
            TypeError: the function cannot be called like that.
        """
        if self._simple and not kwargs and self._required <= len(args) <= len(self.names):
            named = dict(zip(self.names, args, strict=False))
            for name in self.names[len(args) :]:
                named[name] = self._defaults[name]
            return named
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    def check_names(self, option: str, wanted: Iterable[str]) -> None:
        """Check that these are parameters.

        Raises:
            ConfigError: one is not.
        """
        for name in wanted:
            if name not in self.names:
                has = ", ".join(self.names) or "none"
                raise ConfigError(option, f"{self.name} has no parameter {name!r}; it has {has}")


class CallKey:
    """Makes the key of a call from the function's name and all arguments but those left out."""

    def __init__(self, arguments: Arguments, ignore: Iterable[str]) -> None:
        """Prepare what all calls have in common.

        Args:
            arguments: the function's.
            ignore: parameters that are left out.
        """
        self._arguments = arguments
        self._ignore = frozenset(ignore)

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """Return the key of a call.

        Raises:
            UnstableArgument: an argument has no stable text.
            TypeError: the function cannot be called like that.
        """
        name, parts = self._arguments.name, []
        for parameter, value in self._arguments.bind(args, kwargs).items():
            if parameter not in self._ignore:
                try:
                    parts.append(f"{parameter}={_text(value, 0)}")
                except _Unstable as error:
                    raise UnstableArgument(name, parameter, str(error)) from None
        return _shortened(name, f"{name}({','.join(parts)})")


def named_key(name: str, value: object) -> str:
    """Return a key that is made of a name and one value: ``name:text``.

    Args:
        name: a function's, or that of a group of keys.
        value: the value.

    Raises:
        UnstableArgument: the value has no stable text.
    """
    try:
        return _shortened(f"{name}:", f"{name}:{_text(value, 0)}")
    except _Unstable as error:
        raise UnstableArgument(name, "key", str(error)) from None


def _shortened(start: str, key: str) -> str:
    """Return a key that begins with ``start``, with a digest of all of it if it is long."""
    if len(encoded := key.encode("utf-8")) <= LONGEST_TEXT:
        return key
    digest = blake2b(encoded, digest_size=DIGEST_BYTES).hexdigest()
    return f"{start[: MAX_KEY_BYTES // 8]}(#{digest})"


class Template:
    """A format string over arguments: ``"product:{product}:{user.id}"``."""

    def __init__(self, option: str, text: str, arguments: Arguments) -> None:
        """Check a format string.

        Args:
            option: name of the option, for messages.
            text: the format string.
            arguments: of the function.

        Raises:
            ConfigError: it is no format string, or names what is no parameter.
        """
        self._text = text
        self._arguments = arguments
        try:
            parsed = [(field, spec) for _, field, spec, _ in Formatter().parse(text) if field is not None]
        except ValueError as error:
            raise ConfigError(option, f"{text!r} is no format string: {error}") from None
        if any("{" in (spec or "") for _, spec in parsed):
            raise ConfigError(option, f"{text!r} has a field inside of a field")
        named = [field for field, _ in parsed]
        arguments.check_names(option, [field.replace("[", ".").partition(".")[0] for field in named])

    def format(self, arguments: Mapping[str, Any]) -> str:
        """Return the text for these arguments.

        Raises:
            UnstableArgument: what is to be formatted has no stable text.
        """
        try:
            return _FORMATTER.vformat(self._text, (), arguments)
        except _Unstable as error:
            raise UnstableArgument(self._arguments.name, self._text, str(error)) from None


class _StableFormatter(Formatter):
    """Formats nothing but values that have a stable text: plain ones as ever, others by that text."""

    def convert_field(self, value: Any, conversion: Any) -> Any:
        if conversion is not None:
            _text(value, 0)
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> str:
        text = _text(value, 0)
        if type(value) in _PLAIN:
            return format(value, format_spec)
        if format_spec:
            raise _Unstable(f"of type {type(value).__qualname__} with a format, {format_spec!r}")
        return text


_FORMATTER: Final = _StableFormatter()
