"""Store a value, in Redis, and tell all instances.

The value is read as JSON if it is JSON, else it is the text itself: 42 stores a number, '"42"' and forty-two text.
"""

from __future__ import annotations

import argparse

from coherent_cache.cli.common import EXIT_OK, add_connection, from_text, open_cache, say, say_json, ttl
from coherent_cache.config import DEFAULT_TTL
from coherent_cache.defaults import DEFAULT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("key", metavar="KEY")
    parser.add_argument("value", metavar="VALUE", type=from_text)
    parser.add_argument(
        "--ttl", type=ttl, default=DEFAULT, metavar="SECONDS",
        help=f"seconds until it expires, or 'none' (default {DEFAULT_TTL:g})",
    )  # fmt: skip
    add_connection(parser)


def run(args: argparse.Namespace) -> int:
    """Store a value and print its version."""
    with open_cache(args) as cache:
        version = cache.set(args.key, args.value, ttl=args.ttl)
    if args.json:
        say_json({"key": args.key, "version": str(version)})
    else:
        say(f"stored {args.key!r}, version {version}")
    return EXIT_OK
