"""What the commands share: exit codes, the options that say where Redis is, values as text."""

from __future__ import annotations

import argparse
import json
import os
import sys
from base64 import b64encode
from math import isfinite
from typing import Any, Final

from coherent_cache.cache import CoherentCache
from coherent_cache.config import Settings
from coherent_cache.errors import ConfigError
from coherent_cache.remote.inquiry import find_shards

EXIT_OK: Final = 0
EXIT_PROBLEM: Final = 1
EXIT_USAGE: Final = 2
EXIT_NO_REDIS: Final = 3
EXIT_SIGNAL: Final = 128
"""A command that a signal ended exits with this plus the signal's number, as shells do."""

URL_VARIABLE: Final = "COHERENT_CACHE_URL"
NAMESPACE_VARIABLE: Final = "COHERENT_CACHE_NAMESPACE"

DEFAULT_URL: Final = "redis://localhost:6379/0"
"""Where Redis is if nobody says."""

PROGRAM: Final = "coherent-cache"


class Terminated(KeyboardInterrupt):
    """A signal other than Ctrl-C asks the command to end. It is cleaned up after as after Ctrl-C.

    Attributes:
        signum: number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.signum = signum


def add_json(parser: argparse.ArgumentParser, what: str = "print one JSON document, for programs") -> None:
    """Add ``--json``, with what it does."""
    parser.add_argument("--json", action="store_true", help=what)


def add_connection(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which cache is meant, and ``--json``; :func:`open_cache` reads them."""
    add_place(parser)
    add_json(parser)


def add_place(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which cache is meant; :func:`place_of` reads them."""
    # The values of the variables are no defaults: those are shown by --help, and a URL may hold a password.
    parser.add_argument("--url", help=f"where Redis is (else {URL_VARIABLE}, else {DEFAULT_URL})")
    parser.add_argument("--namespace", help=f"namespace of the cache (else {NAMESPACE_VARIABLE})")
    parser.add_argument("--shards", type=int, help="as the namespace was created with (else as it is found)")


def place_of(args: argparse.Namespace) -> tuple[str, str]:
    """Return where Redis is, and the namespace.

    Raises:
        ConfigError: no namespace was given.
    """
    namespace = args.namespace or os.environ.get(NAMESPACE_VARIABLE)
    if not namespace:
        raise ConfigError("namespace", f"give --namespace, or set {NAMESPACE_VARIABLE}")
    return args.url or os.environ.get(URL_VARIABLE) or DEFAULT_URL, namespace


def open_cache(args: argparse.Namespace) -> CoherentCache:
    """Return the cache that the options name: without a local tier, since the command ends at once.

    Raises:
        ConfigError: no namespace was given, or an option is unusable.
        CacheUnavailable: Redis is away or refuses.
    """
    url, namespace = place_of(args)
    shards = args.shards
    if shards is None:
        shards = find_shards(url, Settings(namespace=namespace)) or 1
    return CoherentCache(url, namespace=namespace, shards=shards, local_enabled=False)


def say(text: str) -> None:
    """Print a line to standard output, now: the reader may be a pipe.

    Characters that the terminal's encoding does not have are escaped.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)  # noqa: T201


def complain(text: str) -> None:
    """Print one line to standard error, whatever the text looks like."""
    print(f"{PROGRAM}: {' '.join(text.split())}", file=sys.stderr, flush=True)  # noqa: T201


def say_json(document: Any) -> None:
    """Print a JSON document of one line."""
    say(to_json(document))


def to_json(value: Any) -> str:
    """Return a value as JSON: strictly, so bytes become base64 text, infinite numbers null, and the rest its repr."""
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key if isinstance(key, str) else to_text(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, bytes):
        return b64encode(value).decode("ascii")
    return repr(value)


def to_text(value: Any) -> str:
    """Return a value for people: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else to_json(value)


def from_text(text: str) -> Any:
    """Read a value from the command line: JSON if it is JSON, else the text itself."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text


def _refuse(constant: str) -> Any:
    raise ValueError(constant)  # NaN and Infinity are no JSON: they are text


def ttl(text: str) -> float | None:
    """Read a time to live: seconds, or ``none`` for no expiry."""
    return None if text == "none" else float(text)
