"""Make every value of a namespace absent, for all instances, at once."""

from __future__ import annotations

import argparse

from coherent_cache.cli.common import EXIT_OK, add_connection, open_cache, say, say_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_connection(parser)


def run(args: argparse.Namespace) -> int:
    """Clear a namespace and print the version of the clear."""
    with open_cache(args) as cache:
        version = cache.clear()
        namespace = cache.namespace
    if args.json:
        say_json({"namespace": namespace, "version": str(version)})
    else:
        say(f"cleared namespace {namespace!r}, version {version}")
    return EXIT_OK
