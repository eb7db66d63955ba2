"""Print a value: text as it is, anything else as JSON. Exits with 1 if there is none."""

from __future__ import annotations

import argparse

from coherent_cache.cli.common import (
    EXIT_OK,
    EXIT_PROBLEM,
    add_connection,
    complain,
    open_cache,
    say,
    say_json,
    to_text,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("key", metavar="KEY")
    add_connection(parser)


def run(args: argparse.Namespace) -> int:
    """Print the value of a key."""
    with open_cache(args) as cache:
        entry = cache.get_entry(args.key)
    if args.json:
        found = {} if entry is None else {
            "value": entry.value, "version": str(entry.version), "expires_in": entry.expires_in,
        }  # fmt: skip
        say_json({"key": args.key, "found": entry is not None, **found})
    elif entry is None:
        complain(f"there is no value under key {args.key!r}")
    else:
        say(to_text(entry.value))
    return EXIT_PROBLEM if entry is None else EXIT_OK
