"""Delete values, in Redis and in all local tiers. It is no error if there are none."""

from __future__ import annotations

import argparse

from coherent_cache.cli.common import EXIT_OK, add_connection, open_cache, say, say_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("keys", metavar="KEY", nargs="+")
    add_connection(parser)


def run(args: argparse.Namespace) -> int:
    """Delete values and print how many there were."""
    asked = len(set(args.keys))
    with open_cache(args) as cache:
        deleted = cache.delete_many(args.keys)
    if args.json:
        say_json({"asked": asked, "deleted": deleted})
    else:
        say(f"deleted {deleted} of {asked}")
    return EXIT_OK
